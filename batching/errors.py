"""What a request may get in place of its vectors."""


class Busy(RuntimeError):
    """More tokens are waiting than the limit allows: try again."""


class EngineFailed(RuntimeError):
    """The engine cannot compute one text: it raised for it alone, or its vector was not finite."""

    def __init__(self, position: int, cause: str) -> None:
        """`position` is the text's in its request."""
        super().__init__(f"the engine cannot compute this text: {cause}")
        self.position = position


class EngineStopped(RuntimeError):
    """The engine's thread has ended; nothing can be computed until the server is started again."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"the engine's thread has ended ({cause!r}); start the server again")

"""The errors that a request may get instead of its vectors."""


class Busy(RuntimeError):
    """More tokens are waiting than the limit allows; try again later."""


class EngineFailed(RuntimeError):
    """The engine cannot compute a text: it raised an error for that text alone, or the vector was not finite."""

    def __init__(self, position: int, cause: str) -> None:
        """`position` is the index of the text in its request."""
        super().__init__(f"the engine cannot compute this text: {cause}")
        self.position = position


class EngineStopped(RuntimeError):
    """Nothing more is computed, as an error ended the engine's thread or the batcher was closed."""

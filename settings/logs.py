"""The log: which lines are written, and in which form. Commands, servers and Cog's worker set it up here.

Every line is masked. Libraries write warnings and errors only.
"""

import errno
import json
import logging
import os
import sys
from datetime import UTC, datetime

import settings
from settings import masking

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("console", "json")
# Our loggers; those of the files in a room inherit its level.
OURS = (
    "api", "batching", "container", "corpus", "engine", "fetching", "predict", "service", "settings", "weights",
)  # fmt: skip
LINE = "%(levelname)s %(name)s: %(message)s"
TIMED = f"%(asctime)s {LINE}"


class JsonLines(logging.Formatter):
    """Lines as Cog's server writes its own, so that one parser reads both."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line of JSON: time in UTC, level, the message with any traceback, a record's `facts`, logger."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        fields = {"message": super().format(record), **getattr(record, "facts", {})}
        return json.dumps({"timestamp": f"{time}Z", "level": level, "fields": fields, "target": record.name})


def of_command(*loggers: str, as_json: bool = False) -> None:
    """Write sentences to stderr for the person who runs a command, or JSON; of INFO only what `loggers` have."""
    _write(JsonLines() if as_json else logging.Formatter("%(message)s"), loggers, logging.INFO)


def of_server() -> None:
    """Write lines with their time and level to stderr, as JSON if LOG_FORMAT says so. Raises SettingError."""
    _write(formatter(), OURS, level())


def of_worker() -> None:
    """Write lines with their level to stderr, where Cog's server puts its own around them. Raises SettingError."""
    _write(logging.Formatter(LINE), OURS, level())


def level() -> int:
    """Return LOG_LEVEL, the least level of our lines. Raises SettingError."""
    return logging.getLevelNamesMapping()[settings.choice("LOG_LEVEL", LEVELS, "info").upper()]


def formatter() -> logging.Formatter:
    """Return the form that LOG_FORMAT names. Raises SettingError."""
    return JsonLines() if settings.choice("LOG_FORMAT", FORMATS, "console") == "json" else logging.Formatter(TIMED)


def answer(text: str) -> None:
    """Write a command's answer to stdout, or exit with status 1, in silence if only its reader has gone."""
    try:
        if not sys.stdout:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes the rest at its end
        has_gone = isinstance(error, BrokenPipeError)
        sys.exit(
            1 if has_gone else f"stdout: it cannot be written to ({error.strerror}); make room, or send it elsewhere"
        )


def _write(form: logging.Formatter, loggers: tuple[str, ...], least: int) -> None:
    masking.keep_secrets()
    handler = logging.StreamHandler()
    handler.setFormatter(form)
    logging.basicConfig(level=max(least, logging.WARNING), handlers=[handler])
    for name in loggers:
        logging.getLogger(name).setLevel(least)

"""One file from one address onto the disk: resumed, retried, with its progress told."""

import errno
import io
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from tqdm import tqdm

from fetching.files import fsync

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRY_DELAYS_S = (1.0, 2.0, 4.0)
LOG_EVERY_S = 5.0
# What a full disk, a limit or a folder of somebody else's say; trying again does not help.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
SPARE_BYTES = 64 << 20


class Unavailable(Exception):
    """A source that does not give its files: why, and what to do, as parts of a sentence."""

    def __init__(self, why: str, remedy: str) -> None:
        self.why, self.remedy = why, remedy
        super().__init__(f"{why}; {remedy}")


class Progress(tqdm):
    """A progress bar on a terminal, otherwise a line in the log every few seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._to_log = not sys.stderr.isatty()
        self._logged_at = time.monotonic()
        if self._to_log:
            kwargs |= {"disable": False, "file": io.StringIO(), "mininterval": LOG_EVERY_S}
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show where it stands."""
        if not self._to_log:
            super().display(msg, pos)
        elif time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.info("%s: %.0f of %.0f MB", self.desc, self.n / 1e6, (self.total or 0) / 1e6)


# tqdm's own lock is shared with forked processes: one that is killed while it holds it would stop all others for ever.
Progress.set_lock(threading.RLock())


def check_free(directory: Path, needed: int) -> None:
    """Raise Unavailable if the disk of `directory` has not `needed` bytes and some to spare."""
    free = shutil.disk_usage(directory).free
    if needed and free < needed + SPARE_BYTES:
        raise Unavailable(
            f"{needed / 1e6:,.0f} MB are needed in {directory} and {free / 1e6:,.0f} MB are free",
            "free some, or set WEIGHTS_CACHE to a folder on a larger disk",
        )


def with_retries(what: str, action: Callable[[], Result]) -> Result:
    """Return what `action` returns, trying again after errors that may pass. Raises the last one's error."""
    for delay_s in RETRY_DELAYS_S:
        try:
            return action()
        except Exception as error:  # the HTTP client's errors and the file system's have no common base
            if not _may_pass(error):
                raise
            delay_s *= random.uniform(0.75, 1.25)  # so that many machines do not come back at once
            logger.warning("%s: %s; trying again in %.1f s", what, first_line(error), delay_s)
            time.sleep(delay_s)
    return action()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return False
    return not isinstance(error, (OfflineModeIsEnabled, Unavailable))


def first_line(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def download(
    url: str, path: Path, part: Path, tag: str, size: int | None = None, headers: Mapping[str, str] | None = None
) -> None:
    """Download `url` to `part` and, when all of it is there, to `path`.

    What broke off is kept and resumed as long as `tag`, which stands for the content, is the same. Raises the HTTP
    client's and the file system's errors when retries do not help.
    """
    tag_file = part.with_name(f"{part.name}.tag")
    for folder in (path.parent, part.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if _read(tag_file) != tag:
        for stale in (path, part):
            stale.unlink(missing_ok=True)
        tag_file.write_text(tag, encoding="utf-8")
    if path.is_file():
        return
    with_retries(f"downloading {path.name}", lambda: _get(url, part, size, headers))
    fsync(part)
    part.replace(path)


def _get(url: str, part: Path, size: int | None, headers: Mapping[str, str] | None) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if size is not None and have > size:
        have = 0
        part.unlink()
    try:
        with part.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=have,
                expected_size=size,
                headers=dict(headers or {}),
                displayed_filename=part.name.removesuffix(".part"),
                tqdm_class=Progress,
            )
    except HfHubHTTPError as error:
        if error.response.status_code != 416:
            raise
        part.unlink(missing_ok=True)
        raise OSError(f"the server has no more than {have:,} bytes of it, expected {size or 'more'}") from error


def download_with_pget(url: str, path: Path, size: int | None) -> bool:
    """Download `url` with pget, in parallel, where that is installed; say whether all of it is there now."""
    program = shutil.which("pget")
    if program is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its own name: pget fills a file from several places, so what it leaves unfinished cannot be resumed.
    temporary = path.with_name(f"{path.name}.pget")
    result = subprocess.run([program, "--force", url, str(temporary)], capture_output=True, text=True)
    if result.returncode != 0 or (size is not None and temporary.stat().st_size != size):
        logger.warning("pget failed (%s); downloading without it", result.stderr.strip().split("\n")[-1])
        temporary.unlink(missing_ok=True)
        return False
    fsync(temporary)
    temporary.replace(path)
    return True


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None

"""Download a file to the disk: resumed, retried, with logged progress; errors read as half a sentence."""

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

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from tqdm import tqdm

from fetching.whole import put_in_place
from settings.masking import masked

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RETRY_DELAYS_S = (1.0, 2.0, 4.0)
LOG_EVERY_S = 5.0
SPARE_BYTES = 64 << 20
ANSWERS = {
    401: "the server refuses it (401); check HF_TOKEN and what it may read",
    403: "the server refuses it (403); check HF_TOKEN and what it may read",
    404: "the server does not have it (404); check the address",
    429: "the server has had too many requests (429); try again later, or set HF_TOKEN",
}


class Unavailable(Exception):
    """A source that does not deliver its files: "why; what to do", as part of a sentence."""


def explain(error: Exception) -> str:
    """Return as "why; what to do" why a server or this machine's disk failed."""
    repo = getattr(error, "repo_id", None)  # None for an address outside a hub's repositories
    if isinstance(error, Unavailable):
        return str(error)
    if _is_local(error):
        remedy = "free some space, or set WEIGHTS_CACHE to a folder that can be written"
        return f"it cannot be written to the disk ({_first_line(error)}); {remedy}"
    if isinstance(error, OfflineModeIsEnabled):
        return "it is not in the cache and HF_HUB_OFFLINE is set; unset it, or name a directory"
    if repo and isinstance(error, GatedRepoError):
        licence = f"accept the licence at https://huggingface.co/{repo}"
        return f"the repository is gated; {licence} and set HF_TOKEN to a token of that account"
    if repo and isinstance(error, RevisionNotFoundError):
        return "there is no such revision; name one that the repository has"
    if repo and isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private; check the name, and set HF_TOKEN if it is private"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in ANSWERS:
        return ANSWERS[error.response.status_code]
    remedy = "check the network, or name a directory that has it"
    return f"it is not in the cache and the server did not give it ({_first_line(error)}); {remedy}"


def _is_local(error: Exception) -> bool:
    """Return whether the operating system refused, because of a full disk, a limit or permissions."""
    is_network = isinstance(error, (ConnectionError, TimeoutError))
    return isinstance(error, OSError) and error.errno is not None and not is_network


def _first_line(error: Exception) -> str:
    return masked(f"{type(error).__name__}: {error}".strip().split("\n")[0])


def with_retries(what: str, action: Callable[[], Result]) -> Result:
    """Return what `action` returns, retrying after temporary errors. Raises the error of the last try."""
    for delay_s in RETRY_DELAYS_S:
        try:
            return action()
        except Exception as error:  # the HTTP client's errors and the file system's have no common base
            if not _may_pass(error):
                raise
            delay_s *= random.uniform(0.75, 1.25)  # so that many machines do not retry at once
            logger.warning("%s: %s; trying again in %.1f s", what, _first_line(error), delay_s)
            time.sleep(delay_s)
    return action()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 429) or status >= 500
    return not (isinstance(error, (OfflineModeIsEnabled, Unavailable)) or _is_local(error))


def check_free(directory: Path, needed: int) -> None:
    """Raise Unavailable unless the disk of `directory` has `needed` bytes free, and some to spare."""
    free = shutil.disk_usage(directory).free
    if needed > 0 and free < needed + SPARE_BYTES:
        raise Unavailable(
            f"{needed / 1e6:,.0f} MB are needed in {directory} and {free / 1e6:,.0f} MB are free; "
            "free some, or set WEIGHTS_CACHE to a folder on a larger disk"
        )


class LoggedProgress(tqdm):
    """A progress bar without a terminal: a line in the log every few seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._logged_at = time.monotonic()
        super().__init__(*args, **kwargs | {"disable": False, "file": io.StringIO(), "mininterval": LOG_EVERY_S})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log how much has been downloaded."""
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.info("%s: %.0f of %.0f MB", self.desc, self.n / 1e6, (self.total or 0) / 1e6)


# Forked processes share tqdm's own lock: a process killed while holding it would block all others for ever.
LoggedProgress.set_lock(threading.RLock())


def download(
    url: str, path: Path, part: Path, tag: str, size: int | None = None, headers: Mapping[str, str] | None = None
) -> None:
    """Download `url` to `part`, and rename that to `path` when it is complete.

    A part is kept and resumed as long as `tag`, which stands for the content, is the same. Raises the HTTP client's
    and the file system's errors when retries do not help.
    """
    tag_file = part.with_name(f"{part.name}.tag")
    for folder in (path.parent, part.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if not tag_file.is_file() or tag_file.read_text(encoding="utf-8") != tag:
        for stale in (path, part):
            stale.unlink(missing_ok=True)
        tag_file.write_text(tag, encoding="utf-8")
    if path.is_file():
        return
    with_retries(f"downloading {path.name}", lambda: _resume(url, part, size, headers))
    put_in_place(part, path)


def _resume(url: str, part: Path, size: int | None, headers: Mapping[str, str] | None) -> None:
    with part.open("ab") as file:
        if size is not None and file.tell() > size:
            file.truncate(0)
            file.seek(0)
        try:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                expected_size=size,
                headers=dict(headers or {}),
                displayed_filename=part.name.removesuffix(".part"),
                tqdm_class=None if sys.stderr.isatty() else LoggedProgress,
            )
        except HfHubHTTPError as error:
            if error.response.status_code != 416:
                raise
            have = file.tell()
            file.truncate(0)
            raise OSError(f"the server has no more than {have:,} bytes of it, expected {size or 'more'}") from error


def download_with_pget(url: str, path: Path, size: int | None) -> bool:
    """Download `url` with pget, in parallel, if that is installed. Return whether the file is complete."""
    program = shutil.which("pget")
    if program is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: pget fills a file from several places, so its unfinished files cannot be resumed.
    temporary = path.with_name(f"{path.name}.pget")
    result = subprocess.run([program, "--force", url, str(temporary)], capture_output=True, text=True)
    if result.returncode != 0 or (size is not None and temporary.stat().st_size != size):
        logger.warning("pget failed (%s); downloading without it", masked(result.stderr.strip().split("\n")[-1]))
        temporary.unlink(missing_ok=True)
        return False
    put_in_place(temporary, path)
    return True

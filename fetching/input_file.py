"""Download the `file` of a prediction to the disk, with limits on bytes, time, number and address.

Cog's own download has no limits, takes any address, and leaves the file behind when it fails.
"""

import asyncio
import base64
import binascii
import functools
import http.client
import mimetypes
import os
import re
import shutil
import socket
import ssl
import string
import struct
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, unquote_to_bytes, urljoin, urlsplit

import certifi

import settings
from fetching.addresses import AddressRefused, from_settings

# Its folders' names begin so, by which the folders of killed servers are removed.
PREFIX = "input-"
MAX_MB = 1024
MAX_SECONDS = 600
MAX_AT_ONCE = 32
MAX_REDIRECTS = 5
# The longest wait for an answer, or for more of it.
SILENCE_S = 10.0
PIECE_BYTES = 1 << 20
# Percent-encoded characters decoded at once: a few milliseconds, in which no other thread runs.
PIECE_CHARS = 1 << 15
# For the answer's file, the log and other programs.
SPARE_BYTES = 256 << 20
# Without the version, which servers need not know.
AGENT = "embeddinggemma-cog"
SCHEMES = ("http://", "https://", "data:")
REDIRECTS = (301, 302, 303, 307, 308)
# The part of a name that tells the format, such as `.jsonl.gz`; the rest is dropped.
SUFFIXES = re.compile(r"(\.[a-z0-9]{1,10}){1,2}$", re.IGNORECASE | re.ASCII)
REMEDY = "give an address from which it can be downloaded without signing in"


class FileRefused(ValueError):
    """A `file` that is not fetched: the problem and the remedy, without any part of the URL."""


class _Download:
    """A connection that another thread may end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.ended = False

    def use(self, connection: socket.socket) -> None:
        """Let `end` close this connection from now on."""
        with self._lock:
            self._socket = connection
        if self.ended:
            self.end()

    def end(self) -> None:
        """Wake the thread that waits for the connection: it raises OSError, or reads the end of the file."""
        self.ended = True
        with self._lock, suppress(OSError):
            if self._socket is not None:
                # A reset: a server with unread data would not notice a plain shutdown for a minute.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()


class InputFiles:
    """Fetches the files of predictions, in threads of its own."""

    def __init__(self) -> None:
        """Read FILE_ADDRESSES, FILE_MB, FILE_SECONDS and FETCHES_AT_ONCE, or raise SettingError."""
        self._addresses = from_settings()
        self._max_mb = settings.count("FILE_MB", MAX_MB)
        self._max_seconds = settings.count("FILE_SECONDS", MAX_SECONDS)
        self._at_once = settings.count("FETCHES_AT_ONCE", MAX_AT_ONCE)
        self._free = threading.BoundedSemaphore(self._at_once)
        self._threads = ThreadPoolExecutor(self._at_once, "file")

    @asynccontextmanager
    async def fetched(self, url: str, folder: Path) -> AsyncIterator[Path]:
        """Yield the file at a URL, in a folder of its own within `folder` that is removed after the block.

        Raises FileRefused. When it is cancelled, the download ends.
        """
        if not url[:10].lower().startswith(SCHEMES):
            raise FileRefused("file: it is no URL; give one that begins with http://, https:// or data:")
        if not self._free.acquire(blocking=False):
            raise FileRefused(
                f"busy: {self._at_once} files are being fetched, as FETCHES_AT_ONCE allows; send it again in a moment"
            )
        place, download = folder / f"{PREFIX}{os.urandom(8).hex()}", _Download()
        work = self._threads.submit(self._fetch, url, place, download)
        work.add_done_callback(lambda _: self._free.release())
        try:
            yield await self._in_time(work)
        finally:
            download.end()
            remove = functools.partial(shutil.rmtree, place, ignore_errors=True)
            if work.done():  # quick, except for a large file
                asyncio.get_running_loop().run_in_executor(None, remove)
            else:
                work.add_done_callback(lambda _: remove())

    async def _in_time(self, work: Future[Path]) -> Path:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self._max_seconds)
        except TimeoutError:
            raise FileRefused(
                f"file: it was not there within {self._max_seconds:,} seconds; give it from a faster server, split it, "
                "or raise the server's FILE_SECONDS"
            ) from None

    def _fetch(self, url: str, place: Path, download: _Download) -> Path:
        """Return the file. Raises FileRefused."""
        try:
            place.mkdir()
            if url[:5].lower() == "data:":
                suffix, pieces = _of_data(url)
                return self._write(place / f"file{suffix}", pieces)
            with self._answer(url, download) as answer:
                if answer.length is not None:
                    self._check_size(answer.length, place)
                path = self._write(place / f"file{_suffix(url, answer)}", _body(answer, download))
                if answer.length:  # http.client takes the connection's end for the file's
                    raise FileRefused(f"file: the connection ended before the file did; {REMEDY}")
                return path
        except FileRefused:
            raise
        except AddressRefused:
            raise FileRefused(
                "file: its address is not a public one, and this server fetches from no other; give the file within "
                "the request, as a data: URL, or let the server's FILE_ADDRESSES list the address"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FileRefused(f"file: {_reason(error)}; {REMEDY}") from None
        finally:
            download.close()

    @contextmanager
    def _answer(self, url: str, download: _Download) -> Iterator[http.client.HTTPResponse]:
        """Yield the answer of the file's server, after redirects, before its body is read."""
        for _ in range(MAX_REDIRECTS + 1):
            connection, target, headers = self._connection(urlsplit(url), download)
            with closing(connection):
                connection.request("GET", target, headers=headers)
                answer = connection.getresponse()
                location = answer.headers.get("Location")
                if answer.status == 200:
                    with answer:
                        yield answer
                    return
                if answer.status not in REDIRECTS or location is None:
                    raise FileRefused(f"file: its server answered {answer.status}; {REMEDY}")
            url = urljoin(url, location)
            if not url.lower().startswith(SCHEMES[:2]):
                raise FileRefused(f"file: its server leads to what is not of http:// or https://; {REMEDY}")
        raise FileRefused(f"file: more than {MAX_REDIRECTS} redirects; give the address that they lead to")

    def _connection(
        self, parts: SplitResult, download: _Download
    ) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """Return an open connection over which to ask for a URL, the target to ask for, and the headers."""
        host, is_tls = (parts.hostname or "").encode("idna").decode(), parts.scheme == "https"
        if not host:
            raise ValueError
        port, named = parts.port or (443 if is_tls else 80), f"[{host}]" if ":" in host else host
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
        headers = {"Host": named if parts.port is None else f"{named}:{port}", "User-Agent": AGENT}
        headers |= _authorization(parts, "Authorization")
        proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
        connection = http.client.HTTPConnection(host, port, timeout=SILENCE_S)
        if proxy is None:
            connection.sock = self._addresses.connect(host, port, SILENCE_S)
        else:  # the proxy connects, and must itself refuse forbidden addresses
            by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            access = _authorization(by, "Proxy-Authorization")
            connection = http.client.HTTPConnection(str(by.hostname), by.port, timeout=SILENCE_S)
            if is_tls:
                connection.set_tunnel(host, port, access)
            else:
                target, headers = f"http://{named}:{port}{target}", headers | access
            connection.connect()
        download.use(connection.sock)
        if is_tls:
            tls = _tls().wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
            connection.sock = tls
            download.use(tls)
            tls.do_handshake()
        return connection, target, headers

    def _write(self, path: Path, pieces: Iterator[bytes]) -> Path:
        size = 0
        with path.open("xb") as file:
            for piece in pieces:
                size += len(piece)
                self._check_size(size, path.parent, len(piece))
                file.write(piece)
        return path

    def _check_size(self, size: int, place: Path, unwritten: int | None = None) -> None:
        if size > self._max_mb << 20:
            raise FileRefused(f"file: it is larger than {self._max_mb:,} MB; split it, or raise the server's FILE_MB")
        disk = shutil.disk_usage(place)
        if disk.free < (size if unwritten is None else unwritten) + min(SPARE_BYTES, disk.total // 20):
            raise FileRefused("file: the server's disk has no room for it; make room there, or split the file")


def _body(answer: http.client.HTTPResponse, download: _Download) -> Iterator[bytes]:
    """Yield an answer piece by piece. Raises TimeoutError once the download is ended, as data may never end."""
    while piece := answer.read(PIECE_BYTES):
        if download.ended:
            raise TimeoutError
        yield piece


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return a context that trusts the system's certificate authorities, and those that Cog installs."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _authorization(parts: SplitResult, header: str) -> dict[str, str]:
    """Return the header for the user and password in a URL, if there are any."""
    if parts.username is None:
        return {}
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {base64.b64encode(user.encode()).decode()}"}


def _suffix(url: str, answer: http.client.HTTPResponse) -> str:
    """Return the suffix of the file's name, which tells its format. Raises FileRefused for an unknown coding."""
    match = SUFFIXES.search(unquote(urlsplit(url).path))
    suffix = match[0].lower() if match else ""
    coding = answer.headers.get("Content-Encoding", "identity").lower()
    if coding in ("gzip", "x-gzip"):  # not requested, so the file is stored compressed
        return suffix if suffix.endswith(".gz") else f"{suffix}.gz"
    if coding != "identity":
        raise FileRefused("file: its server sends it in a Content-Encoding that was not asked for; store it without")
    return suffix


def _reason(error: Exception) -> str:
    """Return why a file could not be downloaded, without any part of its URL."""
    match error:
        case socket.gaierror():
            return "its host is not known"
        case ssl.SSLCertVerificationError():
            return f"the certificate of its server does not hold ({error.verify_message})"
        case TimeoutError():
            return f"its server said nothing for {SILENCE_S:.0f} seconds"
        case OSError():
            return f"it could not be downloaded ({error.strerror or type(error).__name__})"
        case http.client.HTTPException():
            return f"its server does not speak HTTP as it should ({type(error).__name__})"
    return "it is no URL that can be read"


def _of_data(url: str) -> tuple[str, Iterator[bytes]]:
    """Return the suffix and the content, piece by piece, of a data: URL's file. Raises FileRefused."""
    head, comma, _ = url[:1_000].partition(",")
    if not comma:
        raise FileRefused("file: the data: URL has no comma between what the file is and its content")
    kind, *parameters = head[5:].lower().split(";")
    suffix = mimetypes.guess_extension(kind.strip() or "text/plain") or ""
    pieces = _unquoted(url, len(head) + 1)
    return suffix, _decoded(pieces) if "base64" in (each.strip() for each in parameters) else pieces


def _unquoted(url: str, start: int) -> Iterator[bytes]:
    """Decode percent-encoding from `start` on."""
    while start < len(url):
        end = start + PIECE_CHARS
        cut = url.rfind("%", end - 2, end)  # an escape is not cut
        end = cut if cut > start else end
        yield unquote_to_bytes(url[start:end])
        start = end


def _decoded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decode base64. Raises FileRefused."""
    rest = b""
    try:
        for piece in pieces:
            rest += piece.translate(None, b" \t\r\n")
            whole = len(rest) // 4 * 4
            yield binascii.a2b_base64(rest[:whole], strict_mode=True)
            rest = rest[whole:]
        yield binascii.a2b_base64(rest, strict_mode=True)
    except binascii.Error:
        raise FileRefused("file: the data: URL says base64, and its content is not; encode the whole file") from None

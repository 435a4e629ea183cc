"""Sources of corpora: files that are not plain files, and misbehaving servers on this machine."""

import gzip
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from corpus import sources
from corpus.readers import Reader, UnknownFormat
from corpus.rows import Columns, CorpusError, Row
from tests.support.corpora import texts, write

TEXTS = texts(30)
CONTENT = "".join(f"{text}\n" for text in TEXTS).encode()
LONG = CONTENT * 20_000  # more than fsspec asks for at once


class Handler(BaseHTTPRequestHandler):
    """A server whose fault is the first part of the path."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        fault, content = self.path.split("/")[1], CONTENT
        if fault == "long":
            content = LONG
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault == "moved":
            self.answer(302, b"", {"Location": self.path.replace("/moved", "")})
            return
        wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if fault == "encoded":
            self.answer(200, gzip.compress(content), {"Content-Encoding": "gzip"})
        elif fault in ("lengthless", "chunked"):
            self.without_length(content, fault == "chunked")
        elif wanted and fault not in ("whole", "long"):
            part = content[int(wanted[1]) : int(wanted[2]) + 1]
            part = part[: len(part) // 2] if fault == "short" else part
            said = f"bytes {wanted[1]}-{wanted[2]}/{len(content)}"
            self.answer(206, part, {"Content-Range": said}, cut=fault == "cut")
        else:
            self.answer(200, content, {})

    def answer(self, status: int, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def without_length(self, content: bytes, chunked: bool) -> None:
        self.send_response(200)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if chunked else content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def refusal(path: str) -> str:
    """Return the error for a corpus, without its path."""
    with pytest.raises(CorpusError) as raised:
        list(Reader(path, Columns()).rows())
    message = str(raised.value)
    assert message.startswith(path) and "\n" not in message
    return message.removeprefix(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt?sig=x.y/z&n=1", "a.txt#part", "moved/a.txt?n=2", "whole/a.txt"])
def test_what_a_server_sends_is_read(site: str, name: str) -> None:
    rows = list(Reader(f"{site}/{name}", Columns()).rows())
    assert [row.text for row in rows if isinstance(row, Row)] == TEXTS


@pytest.mark.parametrize("fault", ["lengthless", "chunked", "encoded"])
def test_a_file_whose_end_nobody_knows_is_refused(site: str, fault: str) -> None:
    assert refusal(f"{site}/{fault}/a.txt") == (
        ": its server does not say how long it is, or cannot send parts of it, so a broken connection would look like "
        "the end; download the file and name it"
    )


def test_what_breaks_off_is_no_end(site: str) -> None:
    remedy = r"; run the same again, or download the file and name it$"
    assert re.match(r", line 1: cannot be read further: Client.*" + remedy, refusal(f"{site}/cut/a.txt"))
    half = rf", line \d+: cannot be read further: it ended after \d+ of {len(CONTENT)} bytes"
    assert re.match(half + remedy, refusal(f"{site}/short/a.txt"))
    assert re.match(r", line \d+: cannot be read further: .*range requests.*" + remedy, refusal(f"{site}/long/a.txt"))
    assert re.match(r": cannot be read: Client.*; download the file and name it$", refusal(f"{site}/cut/a.parquet"))


def test_what_is_not_there_is_said(site: str) -> None:
    remedy = "; check the address, the network and what may be read there, or download the file and name it"
    for status, words in ((404, "Not Found"), (403, "Forbidden"), (500, "Internal Server Error")):
        assert re.match(
            rf": cannot be opened: {status}, message='{words}', .*{remedy}$", refusal(f"{site}/{status}/a.txt")
        )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.txt"
        assert re.match(rf": cannot be opened: Connect.*{remedy}$", refusal(address))
    for address, words in (
        ("nothing://at/a.txt", "ValueError: Protocol not known: nothing"),
        ("memory://none/a.txt", "there is no such file"),
        ("http://[broken/a.txt", "Invalid IPv6 URL"),
    ):
        assert refusal(address) == f": cannot be opened: {words}{remedy}"
    installing = "install it with pip and run the same again"
    for address, words in (
        ("gs://bucket/a.jsonl", "Please install gcsfs to access Google Storage"),
        ("sftp://host/a.jsonl", 'SFTPFileSystem requires "paramiko" to be installed'),
    ):
        assert refusal(address) == f": cannot be opened: {words}; {installing}"


def test_hugging_face_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert re.match(r": cannot be opened: .*offline.*; check the address", refusal("hf://datasets/no/none/a.jsonl"))


def test_a_url_without_a_name_that_tells(site: str) -> None:
    with pytest.raises(UnknownFormat, match="the format is told by the end of the name"):
        Reader(f"{site}/download?id=a.txt", Columns())


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "gone")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.txt"))
        said = {name: refusal(f"{tmp_path}/{name}.txt") for name in ("pipe", "folder", "device", "nowhere", "socket")}
    assert said == {
        "pipe": ": it is a pipe, and is read more than once; write it to a file and name that",
        "folder": ": it is a folder; name the files in it",
        "device": ": it is a device; write what it holds to a file and name that",
        "nowhere": ": cannot be opened: No such file or directory; check the path",
        "socket": ": it is a socket; write what it sends to a file and name that",
    }
    assert refusal(f"file://{tmp_path}/pipe.txt") == said["pipe"]
    assert refusal(str(tmp_path / f"{'n' * 300}.txt")) == ": cannot be opened: File name too long; check the path"
    whole = write(tmp_path / "a#b?c.txt", [{"text": "one"}])
    assert len(list(Reader(str(whole), Columns()).rows())) == 1


ERRORS: list[Exception] = [
    OSError(5, "Input/output error"),
    TimeoutError(),
    EOFError("early"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    ImportError("no library"),
    KeyError("endpoint"),
    AssertionError(),
    RuntimeError("Session is closed"),
    type("ClientError", (Exception,), {})("of a library of others"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_library_raises_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> bytes:
        raise error

    with fsspec.open("memory://some/a.txt", "wb") as file:
        file.write(CONTENT)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", fail)
    assert refusal("memory://some/a.txt").startswith(", line 1: cannot be read further: ")
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem._open", fail)
    assert refusal("memory://some/a.txt").startswith(": cannot be opened: ")


def test_a_lack_of_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    path = write(tmp_path / "a.txt", [{"text": "one"}])
    monkeypatch.setattr(sources, "_open_remote", fail)
    with pytest.raises(MemoryError):
        Reader("memory://some/a.txt", Columns())
    assert len(list(Reader(str(path), Columns()).rows())) == 1

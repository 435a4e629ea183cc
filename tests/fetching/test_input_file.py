"""The file of a prediction: fetched whole or refused in a sentence, in bounded time, and gone afterwards."""

import asyncio
import base64
import gzip
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from fetching import input_file
from fetching.input_file import FileRefused, InputFiles
from settings import SettingError
from tests.support.servers import eventually
from tests.support.sites import LINES, Site, running_site, running_tunnel

INTERNAL = "file: its address is not a public one, and this server fetches from no other; give the file within"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FILE_ADDRESSES", "127.0.0.1")


def fetch(url: str, folder: Path, files: InputFiles | None = None) -> tuple[str, bytes]:
    """Return the name and content of a URL's file, of which nothing stays."""

    async def read() -> tuple[str, bytes]:
        async with (files or InputFiles()).fetched(url, folder) as path:
            return path.name, path.read_bytes()

    try:
        return asyncio.run(read())
    finally:
        deadline = time.monotonic() + 60
        while any(folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/in.jsonl.gz", "file.jsonl.gz"),
        ("/a%20folder/in.CSV?signature=a.b/c&n=1#part", "file.csv"),
        ("/in", "file"),
        ("", "file"),
        ("/.../secret.name.with.txt", "file.with.txt"),
        ("/to?in.txt", "file"),
        ("/ä ö.txt", "file.txt"),
    ],
)
def test_a_file_comes_whole_under_no_more_than_the_end_of_its_name(
    tmp_path: Path, site: Site, path: str, name: str
) -> None:
    assert fetch(f"{site.url}{path}", tmp_path) == (name, LINES)
    assert fetch(f"{site.url.upper()}{path}", tmp_path)[1] == LINES


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody else has signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=site"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "through a proxy"])
def test_https_is_checked_by_the_authorities_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path], by_proxy: bool
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with running_site(tls) as site, running_tunnel() as tunnel:
        if by_proxy:
            monkeypatch.setenv("FILE_ADDRESSES", "public")
            monkeypatch.setenv("https_proxy", tunnel)
        input_file._tls.cache_clear()
        with pytest.raises(FileRefused, match="file: the certificate of its server does not hold"):
            fetch(f"{site.url}/in.txt", tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        input_file._tls.cache_clear()
        assert fetch(f"{site.url}/in.txt", tmp_path) == ("file.txt", LINES)
        for path in ("/trickle.txt", "/silent.txt"):
            monkeypatch.setenv("FILE_SECONDS", "1")
            with pytest.raises(FileRefused, match="file: it was not there within 1 seconds"):
                fetch(f"{site.url}{path}", tmp_path)
    input_file._tls.cache_clear()


@pytest.mark.usefixtures("allowed")
def test_a_handshake_that_never_ends_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILE_SECONDS", "1")
    started = time.monotonic()
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(FileRefused, match="file: it was not there within 1 seconds"):
        fetch(f"https://127.0.0.1:{silent.getsockname()[1]}/in.txt", tmp_path)
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("allowed")
def test_a_coding_that_nobody_asked_for_is_told_by_the_name_or_refused(tmp_path: Path, site: Site) -> None:
    name, content = fetch(f"{site.url}/gzip.txt", tmp_path)
    assert name == "file.txt.gz" and gzip.decompress(content) == LINES
    with pytest.raises(FileRefused, match="in a Content-Encoding that was not asked for; store it without"):
        fetch(f"{site.url}/brotli.txt", tmp_path)


@pytest.mark.usefixtures("allowed")
def test_a_user_and_a_password_are_sent_to_their_server_alone(tmp_path: Path) -> None:
    with running_site() as other, running_site() as site:
        url = site.url.replace("//", "//us%40er:pass@")
        fetch(f"{url}/to?{quote(f'{other.url}/x.txt')}", tmp_path)
        assert b"Authorization: Basic " + base64.b64encode(b"us@er:pass") in site.heads[0]
        assert b"Authorization" not in other.heads[0] and f"Host: {other.url[7:]}".encode() in other.heads[0]


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/cut.txt", "file: the connection ended before the file did; give an address"),
        ("/cut-chunk.txt", r"file: its server does not speak HTTP as it should \(IncompleteRead\)"),
        ("/none.txt", "file: its server answered 404; give an address from which it can be downloaded without"),
        ("/no-http.txt", r"file: its server does not speak HTTP as it should \(BadStatusLine\)"),
        ("/loop", "file: more than 5 redirects; give the address that they lead to"),
        ("/to?ftp://127.0.0.1/x", "file: its server leads to what is not of http:// or https://"),
        ("/to?file:///etc/passwd", "file: its server leads to what is not of http:// or https://"),
        ("/to?http://[", "file: it is no URL that can be read"),
        ("/large.txt", "file: it is larger than 2 MB; split it, or raise the server's FILE_MB"),
        ("/endless.txt", "file: it is larger than 2 MB"),
        ("/to?http://127.0.0.2:9/x", INTERNAL),
        ("/to?http://localhost.localdomain.invalid/x", "file: its host is not known"),
        ("/to?http://169.254.169.254/latest", INTERNAL),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, path: str, problem: str
) -> None:
    monkeypatch.setenv("FILE_MB", "2")
    with pytest.raises(FileRefused, match=problem):
        fetch(f"{site.url}{path}", tmp_path)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("path", ["/trickle.txt", "/trickle-head.txt", "/silent.txt"])
def test_a_slow_server_has_its_time_and_no_more(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("FILE_SECONDS", "1")
    started = time.monotonic()
    with pytest.raises(FileRefused, match="file: it was not there within 1 seconds; give it"):
        fetch(f"{site.url}{path}", tmp_path)
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("allowed")
def test_a_silent_server_is_given_up(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "SILENCE_S", 0.2)
    with pytest.raises(FileRefused, match="file: its server said nothing for 0 seconds"):
        fetch(f"{site.url}/silent.txt", tmp_path)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("path", ["/trickle.txt", "/trickle-head.txt", "/silent.txt", "/endless.txt"])
def test_a_download_ends_with_its_prediction(tmp_path: Path, path: str) -> None:
    files = InputFiles()

    async def leave() -> None:
        with running_site() as site:
            task = asyncio.create_task(_hold(files, f"{site.url}{path}", tmp_path))
            await asyncio.to_thread(eventually, lambda: site.heads, "the site is asked")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await asyncio.to_thread(site.ended.acquire, timeout=30)

    asyncio.run(leave())
    assert fetch("data:text/plain,one", tmp_path, files) == ("file.txt", b"one")


async def _hold(files: InputFiles, url: str, folder: Path) -> None:
    async with files.fetched(url, folder):
        await asyncio.sleep(60)


@pytest.mark.usefixtures("allowed")
def test_more_at_once_than_allowed_are_refused_and_places_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FETCHES_AT_ONCE", "2")
    files = InputFiles()

    async def crowd() -> None:
        with running_site() as site:
            for _ in range(3):
                tasks = [
                    asyncio.create_task(_hold(files, f"{site.url}/{name}", tmp_path))
                    for name in ("trickle.txt", "silent.txt")
                ]
                await asyncio.sleep(0.1)
                with pytest.raises(FileRefused, match="busy: 2 files are being fetched, as FETCHES_AT_ONCE allows"):
                    await _hold(files, "data:,a", tmp_path)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.sleep(0.2)

    asyncio.run(crowd())


def test_addresses_that_are_not_public_are_not_asked(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FILE_ADDRESSES", raising=False)
    asked, port = len(site.heads), site.url.rpartition(":")[2]
    for host in (
        "127.0.0.1",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "localhost",
        "[::ffff:127.0.0.1]",
        "0",
        "127.0.0.1.",
    ):
        with pytest.raises(FileRefused, match=r"address is not a public one|host is not known"):
            fetch(f"http://{host}:{port}/in.txt", tmp_path)
    assert len(site.heads) == asked


def test_a_proxy_of_the_environment_is_asked_and_decides(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FILE_ADDRESSES", raising=False)
    monkeypatch.setenv("http_proxy", site.url.replace("//", "//me:too@"))
    monkeypatch.setenv("no_proxy", "direct.example,127.0.0.1")
    assert fetch("http://files.example/in.txt?a=b", tmp_path) == ("file.txt", LINES)
    assert site.heads[-1].startswith(b"GET http://files.example:80/in.txt?a=b HTTP/1.1\r\n")
    assert b"\r\nHost: files.example\r\n" in site.heads[-1]
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:too") in site.heads[-1]
    with pytest.raises(FileRefused, match=INTERNAL):
        fetch(f"{site.url}/in.txt", tmp_path)


@pytest.mark.parametrize(
    ("url", "name", "content"),
    [
        ("data:text/plain,one%0Atwo%0A", "file.txt", LINES),
        ("data:,one", "file.txt", b"one"),
        ("DATA:text/csv;charset=utf-8;BASE64,b25lCnR3bwo=", "file.csv", LINES),
        ("data:application/json;base64,b25l%0D%0ACnR3bwo%3D", "file.json", LINES),
        ("data:application/x-unheard-of,a,b", "file", b"a,b"),
        ("data:text/plain,ä", "file.txt", "ä".encode()),
        ("data:text/plain,", "file.txt", b""),
        ("data:;base64,", "file.txt", b""),
    ],
)
def test_data_urls_are_decoded(tmp_path: Path, url: str, name: str, content: bytes) -> None:
    assert fetch(url, tmp_path) == (name, content)


@pytest.mark.parametrize("shift", range(4))
def test_data_urls_are_decoded_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    monkeypatch.setattr(input_file, "PIECE_CHARS", 5)
    content = b"\0%a\xff\r\n" * 20 + b"b" * shift
    assert fetch(f"data:,{'x' * shift}{quote(content)}", tmp_path)[1] == b"x" * shift + content
    encoded = quote(base64.encodebytes(content))
    assert fetch(f"data:a/b;base64,{encoded}", tmp_path)[1] == content


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("corpus.txt", "file: it is no URL; give one that begins with http://, https:// or data:"),
        ("/etc/passwd", "file: it is no URL"),
        ("file:///etc/passwd", "file: it is no URL"),
        ("data:text/plain", "file: the data: URL has no comma"),
        ("data:;base64,b25lCnR3bwo", "file: the data: URL says base64, and its content is not; encode the whole file"),
        ("data:;base64,b25l_nR3", "file: the data: URL says base64"),
        ("data:;base64,b25lCg==b25l", "file: the data: URL says base64"),
        (f"data:,{'a' * (1 << 20)}b", "file: it is larger than 1 MB; split it, or raise the server's FILE_MB"),
        ("http://", "file: it is no URL that can be read"),
        ("http://:80/x", "file: it is no URL that can be read"),
        ("http://a:b:c/x", "file: it is no URL that can be read"),
        ("http://[::1/x", "file: it is no URL that can be read"),
        (f"http://{'a' * 300}.example/", "file: it is no URL that can be read"),
        ("http://nobody.invalid/x", "file: its host is not known"),
    ],
)
def test_what_is_no_file_is_refused_without_being_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, problem: str
) -> None:
    monkeypatch.setenv("FILE_MB", "1")
    with pytest.raises(FileRefused, match=problem) as refused:
        fetch(url, tmp_path)
    assert "passwd" not in str(refused.value) and "nobody" not in str(refused.value)


def test_a_full_disk_is_told_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "SPARE_BYTES", 1 << 60)
    monkeypatch.setattr("fetching.input_file.shutil.disk_usage", lambda _: Usage(total=1 << 30, free=1 << 20))
    with pytest.raises(FileRefused, match="file: the server's disk has no room for it; make room there, or split"):
        fetch("data:,a", tmp_path)


class Usage:
    def __init__(self, total: int, free: int) -> None:
        self.total, self.free = total, free


@pytest.mark.parametrize("name", ["FILE_MB", "FILE_SECONDS", "FETCHES_AT_ONCE"])
def test_settings_that_cannot_be_meant_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "much")
    with pytest.raises(SettingError, match=f"{name} is 'much'"):
        InputFiles()


def test_folders_of_inputs_are_known_to_their_sweeper() -> None:
    from container import prediction_folders

    assert input_file.PREFIX == prediction_folders.INPUT

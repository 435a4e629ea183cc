"""A web server on this machine whose answers, by the path that is asked for, are good, slow, endless or cut short."""

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

LINES = b"one\ntwo\n"
TRICKLE_S = 0.05


@dataclass
class Site:
    """Where it listens, and the head of each request that came."""

    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released at the end of each connection."""


def _whole(content: bytes, *headers: bytes, claimed: int | None = None) -> bytes:
    length = b"Content-Length: %d" % (len(content) if claimed is None else claimed)
    return b"\r\n".join([b"HTTP/1.1 200 OK", length, *headers, b"", content])


def _trickle(connection: socket.socket, head: bytes) -> None:
    connection.sendall(head)
    while True:
        time.sleep(TRICKLE_S)
        connection.sendall(b"a")


def _endless(connection: socket.socket) -> None:
    text = b"text " * 13_000
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"%x\r\n%s\r\n" % (len(text), text))


def _answer(connection: socket.socket, path: str) -> None:
    name, _, rest = path.partition("?")
    answers: dict[str, Callable[[], object]] = {
        "/cut.txt": lambda: connection.sendall(_whole(LINES[:4], claimed=len(LINES))),
        "/cut-chunk.txt": lambda: connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n" + LINES[:4]
        ),
        "/trickle.txt": lambda: _trickle(connection, _whole(LINES, claimed=1 << 20)),
        "/trickle-head.txt": lambda: _trickle(connection, b"HTTP/1.1 200 OK\r\nX: "),
        "/silent.txt": lambda: connection.recv(1),
        "/endless.txt": lambda: _endless(connection),
        "/large.txt": lambda: connection.sendall(_whole(b"", claimed=1 << 40)),
        "/to": lambda: connection.sendall(
            b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % unquote(rest).encode()
        ),
        "/loop": lambda: connection.sendall(b"HTTP/1.1 307 Again\r\nLocation: /loop\r\nContent-Length: 0\r\n\r\n"),
        "/none.txt": lambda: connection.sendall(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n"),
        "/no-http.txt": lambda: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
        "/gzip.txt": lambda: connection.sendall(_whole(gzip.compress(LINES), b"Content-Encoding: gzip")),
        "/brotli.txt": lambda: connection.sendall(_whole(LINES, b"Content-Encoding: br")),
    }
    answers.get(name, lambda: connection.sendall(_whole(LINES)))()


@contextmanager
def running_site(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Run it for the length of a with block; unknown paths have LINES."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site = Site(f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}")

        def serve(connection: socket.socket) -> None:
            with suppress(OSError), tls.wrap_socket(connection, True) if tls else connection as connection:
                head = b""
                while b"\r\n\r\n" not in head and (part := connection.recv(1 << 16)):
                    head += part
                site.heads.append(head)
                if head:
                    _answer(connection, head.split(b" ")[1].decode())
            site.ended.release()

        def listen() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=listen, daemon=True).start()
        yield site
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def running_tunnel() -> Iterator[str]:
    """Run a proxy that connects its clients to what they ask for; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while part := source.recv(1 << 16):
                    sink.sendall(part)
            for each in (source, sink):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

        def serve(client: socket.socket) -> None:
            with client, suppress(OSError):
                host, _, port = client.recv(1 << 16).split(b" ")[1].decode().rpartition(":")
                with socket.create_connection((host, int(port))) as other:
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    threading.Thread(target=pump, args=(client, other), daemon=True).start()
                    pump(other, client)

        def listen() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)

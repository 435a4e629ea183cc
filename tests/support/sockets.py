"""HTTP written by hand to a socket, for what no client's library would send."""

import json
import re
import socket
from collections.abc import Sequence

Address = tuple[str, int]

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# A server that has answered and says nothing more for so long has said all.
SILENCE_S = 0.3
PATIENCE_S = 30.0


def asking(texts: Sequence[str], path: str = "/v1/embeddings") -> bytes:
    """Return a whole request for the vectors of these texts."""
    body = json.dumps({"input": texts}).encode()
    return HEAD.replace(b"/v1/embeddings", path.encode()) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(content: bytes) -> bytes:
    """Return a chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(content), content)


def read(connection: socket.socket, patience_s: float = PATIENCE_S, silence_s: float = SILENCE_S) -> bytes:
    """Return what comes within `patience_s`, and then until the server closes the connection or is silent."""
    connection.settimeout(patience_s)
    received = b""
    try:
        while part := connection.recv(1 << 20):
            received += part
            connection.settimeout(silence_s)
    except (TimeoutError, ConnectionResetError):
        pass
    return received


def is_closed(connection: socket.socket, within_s: float) -> bool:
    """Return whether the server closes the connection, reading what it says before."""
    connection.settimeout(within_s)
    try:
        while connection.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


def statuses(received: bytes) -> list[int]:
    """Return the statuses of the answers."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def exchange(address: Address, sent: bytes) -> bytes:
    """Return what is answered to these bytes."""
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        return read(connection)

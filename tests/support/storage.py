"""A web server on this machine to which Cog's server uploads files."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Storage:
    """Where a server uploads files to, and what it answers."""

    url: str = ""
    status: int = 201
    open: threading.Event = field(default_factory=threading.Event)
    """While it is not set, uploads are received and wait for their answer."""
    asked: threading.Event = field(default_factory=threading.Event)
    puts: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Path, content type and content of each upload."""


@contextmanager
def running_storage() -> Iterator[Storage]:
    """Run such a server for the length of a with block."""
    state = Storage()
    state.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            state.asked.set()
            state.open.wait(60)
            state.puts.append((self.path, self.headers["Content-Type"], content))
            self.send_response(state.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}/files"
        yield state
        http.shutdown()

"""A socket that listens, for the front and for the APIs beside it."""

import socket
import sys

import settings
from settings import SettingError

BACKLOG = 2048
# The kernel drops a connection whose client has taken nothing for this long.
UNREAD_TIMEOUT_S = 60


def listen(host: str, port: int, port_from: str = "PORT or --port", host_from: str = "--host") -> socket.socket:
    """Return a socket that listens there. Raises SettingError, which names what sets the port and the address."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if port not in settings.PORTS:
            raise OverflowError(f"a port is {settings.PORTS_IN_WORDS}")
        if not host:
            raise ValueError("the address is empty, which would be all of them")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_TIMEOUT_S * 1000))
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingError(
            f"port {port} of {host[:80] or repr(host)} cannot be listened on ({reason}); choose a free port with "
            f"{port_from}, and an address of this machine with {host_from}"
        ) from None
    return listener

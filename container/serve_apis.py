"""Serve the APIs of OpenAI and others in this process; `container.apis` starts it, and starts it again when it is lost.

It runs until SIGTERM or SIGINT, and then finishes the requests under way.
"""

import argparse
import gc
import logging
import signal
import socket
import sys
import threading

from api.server import ApiServer
from container import supervisor
from engine.contract import CheckpointError, DeviceError
from selfcheck import SelfCheckError
from service import Service
from settings.listening import listen
from settings.version import NAMED
from weights import WeightsError

logger = logging.getLogger("container.serve_apis")


def serve(args: argparse.Namespace) -> int:
    """Serve until a signal, and return the exit status."""
    ended = threading.Event()
    service = Service(args.weights)

    def end(*_: object) -> None:
        if not service.started:  # nobody waits for an answer, and loading may take minutes
            sys.exit()
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    logger.info(NAMED)
    try:
        listener = listen(args.host, args.port) if args.listener is None else socket.socket(fileno=args.listener)
        apis = ApiServer(service, args.host, args.port, listener)
        service.start()
    except (WeightsError, CheckpointError, DeviceError, SelfCheckError, ValueError) as error:
        sys.exit(str(error))
    gc.freeze()  # the garbage collector need not look through the model and its libraries again
    ended.wait()
    apis.close()
    service.close()
    return 0


def main() -> None:
    parser = supervisor.parser_of(__doc__ or "", 8080)
    parser.add_argument("--listener", type=int, help="file descriptor of a socket that listens there already")
    supervisor.run(parser, serve)


if __name__ == "__main__":
    main()

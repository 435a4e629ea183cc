"""Serve OpenAI's, Gemini's, TEI's, Ollama's and Cohere's APIs on this machine, without Cog's server.

    python -m scripts.api --weights small --port 8080

It runs until SIGTERM or SIGINT, and then finishes the requests under way.
"""

import argparse
import gc
import logging
import os
import signal
import sys
import threading

import settings
from api.server import DoorError, Doors
from engine.contract import CheckpointError, DeviceError
from selfcheck import SelfCheckError
from service import Service
from weights import WeightsError


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--weights", default=os.environ.get("WEIGHTS"), help="directory, small, or repository[@revision]"
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: PORT, or 8080)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    args = parser.parse_args()
    ended = threading.Event()
    service = Service(args.weights)

    def end(*_: object) -> None:
        if not service.started:  # nobody waits for an answer, and loading may take minutes
            sys.exit()
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        port = settings.port("PORT", 8080) if args.port is None else args.port
        doors = Doors(service, args.host, port, "PORT or --port")
        service.start()
    except (DoorError, WeightsError, CheckpointError, DeviceError, SelfCheckError, ValueError) as error:
        sys.exit(str(error))
    gc.freeze()  # the garbage collector need not look through the model and its libraries again
    ended.wait()
    doors.close()
    service.close()


if __name__ == "__main__":
    main()

"""`python -m container.serve_apis` on a service that fails on demand, with less patience where PATIENCE_S is set."""

import os

import api.server
from container.serve_apis import main
from settings import listening
from tests.support import faulty_service  # noqa: F401

if patience_s := os.environ.get("PATIENCE_S"):
    api.server.RECEIVE_TIMEOUT_S = api.server.KEEP_ALIVE_S = float(patience_s)  # type: ignore[assignment]
    listening.UNREAD_TIMEOUT_S = float(patience_s)  # type: ignore[assignment]

if __name__ == "__main__":
    main()

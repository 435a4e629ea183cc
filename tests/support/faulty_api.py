"""`python -m scripts.api` on a service that fails on demand, with less patience for clients where PATIENCE_S is set."""

import os

import api.server
from scripts.api import main
from tests.support import faulty_service  # noqa: F401

if patience_s := os.environ.get("PATIENCE_S"):
    api.server.RECEIVE_TIMEOUT_S = api.server.KEEP_ALIVE_S = float(patience_s)  # type: ignore[assignment]

if __name__ == "__main__":
    main()

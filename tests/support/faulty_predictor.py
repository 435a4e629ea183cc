"""The predictor on a service that fails on demand."""

import predict
from tests.support import faulty_service  # noqa: F401


class Predictor(predict.Predictor):
    """As it is: the service has the faults."""

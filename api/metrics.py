"""What Prometheus reads: HTTP requests under OpenTelemetry's names, and the queue's counters under TEI's."""

import time
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client import Histogram as HttpHistogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from batching.stats import DURATIONS_S, Histogram
from service import Service
from settings import access
from settings.version import VERSION

COUNTERS = {
    "te_request_count": ("requests", "Requests that were admitted, through Cog's API and all others."),
    "te_embed_count": ("texts", "Texts of these requests."),
    "te_embed_tokens": ("tokens", "Tokens of these texts, prompts included."),
    "te_embed_cache_hits": ("cache_hits", "Texts whose vectors came from the cache."),
    "te_embed_truncated": ("truncated", "Texts that were cut to the limit of tokens."),
    "te_embed_prompted": ("prompted", "Texts that began with one of the model's prompts and got no second one."),
    "te_request_overloaded": ("refused", "Requests that were refused because too much was waiting."),
    "te_batch_count": ("batches", "Batches that were computed."),
    "te_batch_embed_count": ("computed_texts", "Texts in these batches."),
    "te_batch_token_count": ("computed_tokens", "Tokens in these batches."),
}
HISTOGRAMS = {
    "te_request_queue_duration": ("queue_s", "Seconds from a request's arrival to the start of its first batch."),
    "te_request_inference_duration": ("compute_s", "Seconds from there to its last vector."),
    "te_batch_next_size": ("batch_texts", "Texts in a batch."),
    "te_batch_next_tokens": ("batch_tokens", "Tokens in a batch."),
}
# These tell a client of an idle server whether its text was computed, or had been before.
TELLING = ("te_embed_cache_hits", "te_batch_", "te_request_queue_", "te_request_inference_")


class Metrics:
    """The metrics of one service and of the operations that call it."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Queue(service))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._durations = HttpHistogram(
            "http_server_request_duration_seconds",
            "Seconds from a request's first byte to its answer's first.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=DURATIONS_S,
            registry=self._registry,
        )
        self.active = 0
        active = Gauge("http_server_active_requests", "Requests that are being answered.", registry=self._registry)
        active.set_function(lambda: self.active)

    def of(self, method: str, route: str) -> "RouteMetric":
        """Return the metric of a method and route."""
        return RouteMetric(self, self._durations, method, route)

    def exposed(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)


class RouteMetric:
    """Counts and times the requests of one route."""

    def __init__(self, metrics: Metrics, durations: HttpHistogram, method: str, route: str) -> None:
        self._metrics, self._durations, self._labels = metrics, durations, (method, route)
        self._by_status: dict[int, HttpHistogram] = {}

    def start(self) -> float:
        """Count a request as active, and return what `finish` needs."""
        self._metrics.active += 1
        return time.perf_counter()

    def finish(self, started: float, status: int) -> None:
        """Count an answered request by its status."""
        self._metrics.active -= 1
        if (of_status := self._by_status.get(status)) is None:
            of_status = self._by_status[status] = self._durations.labels(*self._labels, str(status))
        of_status.observe(time.perf_counter() - started)


class _Queue(Collector):
    """Reads the counters of the service's queue whenever Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tells = access.tells_cache_hits()

    def describe(self) -> list[Metric]:
        """Return nothing, so registering reads no counters."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the counters as they are now; none before the service has started."""
        if not self._service.started:
            return
        labels = {"version": VERSION, "model": self._service.model}
        yield InfoMetricFamily("embeddinggemma", "The release that serves, and its weights.", labels)
        batcher = self._service.batcher
        totals = batcher.totals()
        for name, (counter, text) in COUNTERS.items():
            if self._tells or not name.startswith(TELLING):
                yield CounterMetricFamily(name, text, getattr(totals, counter))
        for name, (histogram, text) in HISTOGRAMS.items():
            if self._tells or not name.startswith(TELLING):
                yield _family(name, text, getattr(totals, histogram))
        yield GaugeMetricFamily(
            "te_queue_tokens", "Tokens of the texts that wait for a batch.", batcher.waiting_tokens()
        )


def _family(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    """Return a histogram in Prometheus's form, where each bucket includes all smaller ones."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return HistogramMetricFamily(
        name, text, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum
    )

"""What Prometheus reads, and how it moves with requests."""

import re

import httpx
from prometheus_client.parser import text_string_to_metric_families

from batching.stats import Histogram
from service import Service
from settings.version import VERSION

LONG = "metrics " * 3000


def samples(client: httpx.Client) -> dict[str, float]:
    """Return the value of each sample by its name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f" {label}" for label in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_counters_and_histograms_move_with_requests(client: httpx.Client) -> None:
    fresh = ["metrics of a text", "metrics of another", LONG]
    before = samples(client)
    first = client.post("/embed", json={"inputs": fresh, "truncate": True})
    again = client.post("/api/embed", json={"model": "embeddinggemma", "input": fresh[:2]})
    client.post("/embed", json={"inputs": ""})
    after = samples(client)

    def change(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    tokens = int(first.headers["x-compute-tokens"])
    assert change("te_request_count_total") == 2
    assert change("te_embed_count_total") == 5
    assert change("te_embed_tokens_total") == tokens + again.json()["prompt_eval_count"]
    assert change("te_embed_cache_hits_total") == 2
    assert change("te_embed_truncated_total") == 1
    assert change("te_batch_embed_count_total") == 3 and change("te_batch_token_count_total") == tokens
    batches = change("te_batch_count_total")
    assert 1 <= batches <= 3
    assert change("te_batch_next_size_count") == change("te_batch_next_tokens_count") == batches
    assert change("te_batch_next_size_sum") == 3 and change("te_batch_next_tokens_sum") == tokens
    assert change("te_request_queue_duration_count") == change("te_request_inference_duration_count") == 2
    assert 0 < change("te_request_inference_duration_sum") < 60
    durations = "http_server_request_duration_seconds_count"
    assert change(f"{durations} POST 200 /embed") == change(f"{durations} POST 422 /embed") == 1
    assert change(f"{durations} POST 200 /api/embed") == 1
    assert after["te_queue_tokens"] == 0 and after["http_server_active_requests"] == 1
    assert after["process_open_fds"] > 0


def test_a_histograms_buckets_hold_all_smaller_ones(client: httpx.Client) -> None:
    client.post("/embed", json={"inputs": "a"})
    found = re.findall(r'^te_batch_next_size_bucket\{le="(.*)"\} (.*)$', client.get("/metrics").text, re.MULTILINE)
    bounds, counts = [float(bound) for bound, _ in found], [float(count) for _, count in found]
    assert bounds == sorted(bounds) and bounds[-1] == float("inf") and counts == sorted(counts)
    assert counts[-1] == samples(client)["te_batch_next_size_count"]


def test_a_value_counts_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 14.0)


def test_the_release_and_its_weights_are_labels(client: httpx.Client, service: Service) -> None:
    text = client.get("/metrics").text
    labels = f'model="{service.model}",version="{VERSION}"'
    assert f"embeddinggemma_info{{{labels}}} 1.0" in text.splitlines()
    assert "# HELP embeddinggemma_info The release that serves, and its weights." in text

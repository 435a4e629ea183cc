"""The names of the figures in the report of `lab.benchmarks.gpu`, and where they are found."""

from typing import Any

Results = dict[str, Any]

SERVED, AGAIN, RECORDED, MIXED = "as served", "as served, again", "recorded before", "mixed texts"
REFERENCE = "sentence-transformers"
BY_LENGTH = {SERVED: "as served, by length", REFERENCE: f"{REFERENCE}, by length"}
FLOOR, TIME_BY_KIND = "a layer's matmuls together", "time by kind of work"
VARIANTS, WORTH, ALONE, NOW = "variants", "must be times as fast", "alone", "its tile now"
DEPENDENTLY, MERGED, UNMERGED = "few_rows, dependent", "all merged", "none merged"
BUT, NO_WORKSPACE = "all merged but ", "without a workspace"
WITH_GEGLU, OF_FEW_ROWS, OF_ATTENTION = "gate_up with GeGLU", "matmuls of few rows", "attention of a layer"
BY_TORCH, BY_FLASH = "torch, and GeGLU by itself", "norm_rotate, and FlashAttention"
PASS, LASTING, QUERY = "ms a pass", "ms a pass in a row", "query p50 ms"
FROM_TEXTS, FROM_IDS = "tokens/s from texts", "tokens/s from ids"

PASS_TOKENS = 16_384


def predicted(column: str) -> str:
    """Return the name of what a variant should save of this column."""
    return f"should save, {column}"


def figures_of(results: Results, step: str, *path: str) -> Any:
    """Return what a step measured under this path, {} if nothing."""
    place = results.get("steps", {}).get(step, {}).get("figures", {})
    for name in path:
        place = place.get(name, {})
    return place

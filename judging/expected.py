"""What a checkpoint's vectors are, right and with each known fault, each computed once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.tokenizer import Tokenizer
from engine.variants import RIGHT, Variant, Variants
from judging import probes
from judging.faults import Hypothesis
from judging.judgement import distance
from judging.probes import Probe

Change = Callable[[list[int]], list[int]]
"""What is done to the tokens of a text."""
Range = tuple[int, int]
Key = tuple[Variant, tuple[int, ...], Range]


class Expected:
    """The vectors of one checkpoint, for any number of judgements."""

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError or TokenizerError for a checkpoint that is not EmbeddingGemma's."""
        self._directory, self.tokenizer, self._variants = directory, Tokenizer(directory), Variants(directory)
        self._vectors: dict[Key, np.ndarray] = {}

    def vectors(
        self, hypothesis: Hypothesis, asked: Sequence[Probe], change: Change = list, limit: int | None = None
    ) -> list[np.ndarray]:
        """Return what such a server would compute of each probe, float64 [width]; `limit` may be beyond the model's."""
        reads = [self._read(hypothesis, probe, change, limit) for probe in asked]
        self._compute((hypothesis.variant, *read) for read in reads)
        return [self._vectors[hypothesis.variant, *read] for read in reads]

    def prepare(self, hypotheses: Iterable[Hypothesis], asked: Sequence[Probe]) -> None:
        """Compute the vectors of many hypotheses together, which takes less time than one by one."""
        self._compute(
            (hypothesis.variant, *self._read(hypothesis, probe)) for hypothesis in hypotheses for probe in asked
        )

    @cached_property
    def noise(self) -> tuple[float, float]:
        """What sentence-transformers in bfloat16 is off on such texts: 1 - cosine, median and worst."""
        from engine.reference import ReferenceEngine  # takes seconds, and a server in float32 needs none of it

        asked = [*probes.SHORT, *probes.long_probes(self.tokenizer)[:2]]
        reference = ReferenceEngine(self._directory, "cpu", "bfloat16")
        rounded = reference.embed([list(self._read(Hypothesis(), probe)[0]) for probe in asked]).astype(np.float64)
        errors = [distance(a, b) for a, b in zip(rounded, self.vectors(Hypothesis(), asked), strict=True)]
        return float(np.median(errors)), max(errors)

    def _read(
        self, hypothesis: Hypothesis, probe: Probe, change: Change = list, limit: int | None = None
    ) -> tuple[tuple[int, ...], Range]:
        ids = change(hypothesis.read(self.tokenizer, probe, limit)) or [self.tokenizer.bos]
        return tuple(ids), hypothesis.pooled(self.tokenizer, probe, len(ids))

    def _compute(self, keys: Iterable[Key]) -> None:
        """Compute the vectors that are missing: one pass for all poolings and numbers of Dense layers of the same."""
        missing: dict[Variant, dict[tuple[int, ...], list[Range]]] = defaultdict(lambda: defaultdict(list))
        for variant, ids, pooled in dict.fromkeys(key for key in keys if key not in self._vectors):
            ranges = missing[variant._replace(dense=RIGHT.dense)][ids]
            if pooled not in ranges:
                ranges.append(pooled)
        for variant, of_ids in missing.items():
            stages = self._variants.embed_stages(variant, list(of_ids), list(of_ids.values()))
            for dense, rows in enumerate(stages):
                of_stage = variant._replace(dense=dense)
                computed = [(of_stage, ids, pooled) for ids, ranges in of_ids.items() for pooled in ranges]
                self._vectors |= dict(zip(computed, rows.astype(np.float64), strict=True))

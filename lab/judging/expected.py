"""A checkpoint's vectors, right and with each known fault, each computed once."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.tokenizer import Tokenizer
from lab.judging import probes
from lab.judging.faults import Hypothesis
from lab.judging.judgement import distances
from lab.judging.probes import Probe
from lab.judging.variants import RIGHT, Variant, Variants

Range = tuple[int, int]
Key = tuple[Variant, tuple[int, ...], Range]


class Expected:
    """The vectors of one checkpoint, for any number of judgements."""

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError or TokenizerError for a checkpoint that is not EmbeddingGemma's."""
        self.directory, self.tokenizer, self._variants = directory, Tokenizer(directory), Variants(directory)
        self._vectors: dict[Key, np.ndarray] = {}

    def vectors(self, hypothesis: Hypothesis, asked: Sequence[Probe]) -> list[np.ndarray]:
        """Return such a server's vector of each probe, float64 [width]."""
        return self.of_tokens([self._key(hypothesis, probe) for probe in asked])

    def of_tokens(self, keys: Sequence[Key]) -> list[np.ndarray]:
        """Return the vectors, float64 [width], of token ids of which a network takes the mean over a range."""
        self._compute(keys)
        return [self._vectors[key] for key in keys]

    def prepare(self, hypotheses: Iterable[Hypothesis], asked: Sequence[Probe]) -> None:
        """Compute the vectors of many hypotheses together, which is faster than one by one."""
        self._compute(self._key(hypothesis, probe) for hypothesis in hypotheses for probe in asked)

    @cached_property
    def noise(self) -> tuple[float, float]:
        """How far off sentence-transformers in bfloat16 is on such texts: 1 - cosine, median and worst."""
        from engine.reference import ReferenceEngine  # takes seconds, and a server in float32 needs none of it

        asked = [*probes.SHORT, *probes.long_probes(self.tokenizer)[:2]]
        reference = ReferenceEngine(self.directory, "cpu", "bfloat16")
        rounded = reference.embed([Hypothesis().read(self.tokenizer, probe) for probe in asked]).astype(np.float64)
        errors = distances(rounded, self.vectors(Hypothesis(), asked))
        return float(np.median(errors)), float(errors.max())

    def _key(self, hypothesis: Hypothesis, probe: Probe) -> Key:
        ids = hypothesis.read(self.tokenizer, probe)
        return hypothesis.variant, tuple(ids), hypothesis.pooled(self.tokenizer, probe, len(ids))

    def _compute(self, keys: Iterable[Key]) -> None:
        """Compute the missing vectors, those that differ only in pooling or Dense layers in one pass."""
        missing: dict[Variant, dict[tuple[int, ...], list[Range]]] = defaultdict(lambda: defaultdict(list))
        for variant, ids, pooled in dict.fromkeys(key for key in keys if key not in self._vectors):
            ranges = missing[variant._replace(dense=RIGHT.dense)][ids]
            if pooled not in ranges:
                ranges.append(pooled)
        for variant, of_ids in missing.items():
            stages = self._variants.embed(variant, list(of_ids), list(of_ids.values()))
            for dense, rows in enumerate(stages):
                of_stage = variant._replace(dense=dense)
                computed = [(of_stage, ids, pooled) for ids, ranges in of_ids.items() for pooled in ranges]
                self._vectors |= dict(zip(computed, rows.astype(np.float64), strict=True))

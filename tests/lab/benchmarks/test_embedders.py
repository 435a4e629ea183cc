"""The engines that benchmarks compare compute the same vectors."""

from engine.model import FLOAT32
from lab.benchmarks.embedders import LOADERS, errors, load_packed
from tests.support.predictions import TEXTS
from weights import SMALL


def test_sentence_transformers_in_batches_has_the_packed_engine_s_vectors() -> None:
    reference, packed = LOADERS["reference"](SMALL), load_packed(SMALL, numbers=FLOAT32)
    assert reference.description.startswith("sentence-transformers, ")
    cosines, norms = errors(reference.embed(TEXTS[:6], 4), packed.embed(TEXTS[:6], 0))
    assert max(cosines.max(), norms.max()) < (1e-2 if "bfloat16" in reference.description else 1e-6)

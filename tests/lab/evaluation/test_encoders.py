"""Forms of vectors as mteb's encoders: the server's own encoding, the right prompt for each text, titles."""

from pathlib import Path

import numpy as np
import pytest
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

import encoding
from lab.evaluation.encoders import BINARY_SEARCHES, FORMS, FULL, Form, FormEncoder, meta_of, read, task_of
from lab.evaluation.local_tasks import bundled
from lab.evaluation.sources import EvaluationError
from lab.evaluation.store import Store
from tasks import prompt_for
from texts.options import Options

pytestmark = pytest.mark.evaluation

VECTORS = np.random.default_rng(0).normal(size=(9, 768)).astype(np.float32)
TASKS = {task.metadata.name: task.metadata for task in bundled()}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_is_what_the_server_sends(form: Form) -> None:
    sent = Options(embedding_dim=form.embedding_dim, precision=form.precision).finish(VECTORS)
    assert form.bytes == sent[0].nbytes
    read_back = encoding.dequantize(sent, form.precision).astype(np.float64)
    applied = form.apply(VECTORS).astype(np.float64)
    assert applied.shape == (9, form.embedding_dim)
    assert np.abs(np.linalg.norm(applied, axis=1) - 1).max() < 1e-6
    cosines = (applied * read_back).sum(axis=1) / np.linalg.norm(read_back, axis=1)
    assert np.abs(cosines - 1).max() < 1e-6


def test_a_rescored_form_keeps_two_vectors() -> None:
    sizes = {form.name: form.bytes for form in BINARY_SEARCHES}
    assert sizes["768 binary, rescored by float32"] == 96 + 3072
    assert sizes["128 binary, rescored by int8"] == 16 + 128
    assert sizes["256 binary, float32 queries"] == 32
    assert sizes["256 binary, float32 queries, rescored by 768 int8"] == 32 + 768


def test_the_forms_are_every_size_in_every_precision() -> None:
    assert FORMS[0] == FULL and len({form.name for form in FORMS}) == 20
    assert {form.bytes for form in FORMS if form.precision == "binary"} == {96, 64, 32, 16}


@pytest.mark.parametrize(
    ("name", "prompt_type", "task"),
    [
        ("similarity", None, "semantic_similarity"),
        ("intents", None, "classification"),
        ("dictionary", PromptType.query, "retrieval_query"),
        ("dictionary", PromptType.document, "retrieval_document"),
    ],
)
def test_each_text_has_its_task(name: str, prompt_type: PromptType | None, task: str) -> None:
    assert task_of(TASKS[name], prompt_type, {}) == task


def test_a_document_of_reranking_is_a_document() -> None:
    reranking = TASKS["dictionary"].model_copy(update={"type": "Reranking"})
    assert task_of(reranking, PromptType.document, {}) == "retrieval_document"
    assert task_of(reranking, PromptType.query, {}) == "retrieval_query"


def test_another_prompt_can_be_chosen_for_queries_alone() -> None:
    chosen = {"dictionary": "fact_verification"}
    assert task_of(TASKS["dictionary"], PromptType.query, chosen) == "fact_verification"
    assert task_of(TASKS["dictionary"], PromptType.document, chosen) == "retrieval_document"


def test_a_type_without_a_prompt_is_refused() -> None:
    regression = TASKS["intents"].model_copy(update={"type": "Regression"})
    with pytest.raises(
        EvaluationError, match=r"intents: EmbeddingGemma has no prompt for tasks of type Regression; .*"
    ):
        task_of(regression, None, {})


def test_documents_are_read_without_the_title_that_mteb_puts_before_them() -> None:
    batch = {"text": ["cat a small animal", "no title"], "body": ["a small animal", "no title"], "title": ["cat", ""]}
    assert read([batch], PromptType.document) == (["a small animal", "no title"], ["cat", None])
    assert read([{"text": ["a", "b"]}], PromptType.query) == (["a", "b"], [None, None])


def test_mteb_gets_the_vectors_of_sentence_transformers(store: Store, small: Path) -> None:
    """The encoder, through mteb's batches, against encode() with the prompt written out: 1 - cosine below 1e-6."""
    reference = SentenceTransformer(str(small), device="cpu", local_files_only=True)
    encoder = FormEncoder(store, FULL, {}, {})
    bodies, titles = ["a small domesticated animal", "a lofty structure"], ["cat", ""]
    batch = {"text": ["cat a small domesticated animal", bodies[1]], "body": bodies, "title": titles}
    got = encoder.encode(
        [batch], task_metadata=TASKS["dictionary"], hf_split="", hf_subset="", prompt_type=PromptType.document
    )
    prompted = [
        prompt_for("retrieval_document", title or None) + body for title, body in zip(titles, bodies, strict=True)
    ]
    assert _apart(got, reference.encode(prompted)) < 1e-6
    got = encoder.encode([{"text": bodies}], task_metadata=TASKS["similarity"], hf_split="", hf_subset="")
    expected = reference.encode([prompt_for("semantic_similarity") + body for body in bodies])
    assert _apart(got, expected) < 1e-6


def test_results_are_told_apart_by_weights_and_form(store: Store) -> None:
    full, small = meta_of(store, FULL.experiment), meta_of(store, Form(128, "int8").experiment)
    assert full.name == "local/small" and full.revision == store.source.model.partition("@")[2]
    assert full.experiment_name is None and small.experiment_name == "embed_dim_128__precision_int8"


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float((1 - (a.astype(np.float64) * b).sum(axis=1)).max())

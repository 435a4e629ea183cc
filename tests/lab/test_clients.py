"""The shapes of the APIs: the names of tasks, and vectors in every format. tests/lab/judging asks servers with them."""

import base64
from typing import Any

import numpy as np
import pytest

import encoding
from lab.clients import COHERE, DIALECTS, GEMINI, TEI, AskError, Client
from tasks import PROMPTS
from texts.options import Options

VECTORS = np.random.default_rng(0).normal(size=(3, 768)).astype(np.float32)


def test_tasks_have_the_names_that_the_apis_document() -> None:
    assert GEMINI.keys() == PROMPTS.keys() - {"summarization", "none"}
    assert GEMINI["retrieval_query"] == "RETRIEVAL_QUERY" and GEMINI["code_retrieval"] == "CODE_RETRIEVAL_QUERY"
    assert set(COHERE.values()) == {"search_document", "search_query", "classification", "clustering"}
    assert TEI.keys() == PROMPTS.keys() and TEI["question_answering"] == "QuestionAnswering"
    assert (TEI["retrieval_query"], TEI["semantic_similarity"], TEI["none"]) == ("query", "PairClassification", "none")


def test_a_task_goes_where_the_api_has_a_place_for_it() -> None:
    inputs = {"texts": ["a"], "task": "retrieval_query"}
    assert DIALECTS["openai"].body(inputs, "m")["model"] == DIALECTS["ollama"].body(inputs, "m")["model"]
    assert DIALECTS["openai"].body(inputs, "m")["model"] == "m:retrieval_query"
    assert DIALECTS["gemini"].body(inputs)["requests"][0]["taskType"] == "RETRIEVAL_QUERY"
    assert DIALECTS["tei"].body(inputs)["prompt_name"] == "query"
    assert DIALECTS["cohere"].body(inputs)["input_type"] == "search_query"
    assert DIALECTS["cohere"].body({"texts": ["a"]})["input_type"] == "search_document"


@pytest.mark.parametrize("output_format", ["base64", "array"])
@pytest.mark.parametrize("precision", encoding.WIRE_DTYPES)
def test_vectors_come_back_as_they_were_sent(precision: str, output_format: str) -> None:
    sent = Options(precision=precision).finish(VECTORS)
    inputs: dict[str, Any] = {"texts": ["a", "b", "c"], "precision": precision, "output_format": output_format}
    output = {"precision": precision, "shape": list(sent.shape), "output_format": output_format}
    output["embedding"] = encoding.encode(sent, output_format)
    answer: Any = {"status": "succeeded", "output": output}
    assert (DIALECTS["cog"].vectors(answer, inputs) == sent).all()
    rows = [base64.b64encode(row.tobytes()).decode() if output_format == "base64" else row.tolist() for row in sent]
    answer = {"data": [{"embedding": row, "index": i} for i, row in enumerate(rows)]}
    read = DIALECTS["openai"].vectors(answer, inputs)
    assert (read == sent).all() and read.dtype == sent.dtype


def test_one_text_gives_one_row_and_a_failed_prediction_none() -> None:
    vector = VECTORS[0]
    output = {"precision": "float32", "shape": [768], "output_format": "array", "embedding": vector.tolist()}
    read = DIALECTS["cog"].vectors({"status": "succeeded", "output": output}, {"text": "a"})
    assert read.shape == (1, 768) and (read[0] == vector).all()
    with pytest.raises(ValueError, match="out of memory"):
        DIALECTS["cog"].vectors({"status": "failed", "error": "out of memory"}, {"text": "a"})


def test_a_key_that_no_header_can_carry_is_refused_in_words() -> None:
    with pytest.raises(AskError, match="key: it is not of ASCII's characters, and a header takes no"):
        Client("http://127.0.0.1:9", "cog", key="clé")

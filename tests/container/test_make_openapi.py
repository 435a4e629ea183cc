"""openapi.json, and the part of Python that Cog's static reader understands."""

import json

import pytest

from container.make_openapi import OPENAPI, PREDICT, SchemaError, make
from predict import Predictor
from tasks import PROMPTS

SOURCE = PREDICT.read_text(encoding="utf-8")


def test_the_committed_file_is_up_to_date() -> None:
    assert json.loads(OPENAPI.read_text(encoding="utf-8")) == make(SOURCE)


def test_the_choices_are_the_table_of_tasks() -> None:
    assert make(SOURCE)["components"]["schemas"]["task"]["enum"] == list(PROMPTS)


def test_the_contract() -> None:
    schemas = make(SOURCE)["components"]["schemas"]
    defaults = {name: field["default"] for name, field in schemas["Input"]["properties"].items()}
    assert defaults == {
        "text": None,
        "texts": None,
        "task": None,
        "title": None,
        "titles": None,
        "embedding_dim": 768,
        "normalize": True,
        "output_format": "base64",
        "precision": "float32",
        "truncate": "end",
        "chunk": None,
        "overlap": 0,
        "late_chunking": False,
        "file": None,
        "file_format": "auto",
        "output_file": "parquet",
        "text_column": "text",
        "title_column": None,
        "id_column": None,
        "on_error": "stop",
    }
    assert "required" not in schemas["Input"]
    output, file, *vectors = schemas["Output"]["anyOf"]
    assert list(output["properties"]) == [
        *("embedding", "output_format", "shape", "token_counts", "truncated", "prompted", "chunks"),
        *("processing_time_ms", "precision", "model"),
    ]
    assert set(output["properties"]) - set(output["required"]) == {"chunks"}
    for name in (schemas["Input"]["properties"]["file"], file):
        assert (name["type"], name["format"]) == ("string", "uri")
    assert [kind["type"] for kind in vectors] == ["array", "array"]
    assert [kind["type"] for kind in schemas["Input"]["properties"]["texts"]["anyOf"]] == ["array", "string"]
    assert [kind["type"] for kind in output["properties"]["embedding"]["anyOf"]] == [
        "string",
        "array",
        "array",
    ]


def test_a_renamed_input_takes_its_enumeration_along_and_leaves_the_rest() -> None:
    schemas = make(SOURCE)["components"]["schemas"]
    renamed = make(SOURCE.replace("        on_error: str", "        on_fault: str"))["components"]["schemas"]
    assert list(renamed) == ["on_fault" if name == "on_error" else name for name in schemas]
    assert renamed["PredictionRequest"]["properties"]["input"] == {"$ref": "#/components/schemas/Input"}


def test_the_concurrency_is_what_cog_reads() -> None:
    assert Predictor.run.__cog_concurrent_max__ == 256


@pytest.mark.parametrize(
    ("line", "broken", "problem"),
    [
        ("choices=[768, 512, 256, 128]", "choices=DIMENSIONS", "choices must be a plain literal, not DIMENSIONS"),
        ("choices=[768, 512, 256, 128]", "choices=[512, 256]", "default 768 is not among its choices"),
        ("default=768", "default=int(768)", "default must be a plain literal"),
        ('description="Scale', 'description=f"Scale', "description must be one plain string literal"),
        ('description="Scale each', 'description="Scale " "each', "description must be one plain string literal"),
        (
            'description="Scale each vector to length 1 after the cut."',
            'description=("Scale")',
            "description must be one",
        ),
        ("titles: list[str] | None", "titles: list[str]", r"default None needs the annotation list\[str\] \| None"),
        ("task: str", 'task: Literal["none"]', "annotation .* is not one of"),
        ("normalize: bool = Input", "normalize: bool = Field", r"expected = Input\(...\) with keywords only"),
        ("default=True)", "default=True, ge=1)", "expected description and default"),
        ("max=256", "max=SLOTS", "integer literal"),
        ("async def run", "def run", "one async def run"),
        (") -> Any:", ") -> Output | Path:", "the return annotation must be Any"),
        ("class Output(TypedDict)", "class Output", r"expected one class Output\(TypedDict\)"),
        ("shape: list[int]", "shape: tuple[int, ...]", "shape: annotation"),
    ],
)
def test_what_cog_could_not_read_is_refused_with_its_line(line: str, broken: str, problem: str) -> None:
    assert line in SOURCE
    with pytest.raises(SchemaError, match=rf"predict\.py:.*{problem}"):
        make(SOURCE.replace(line, broken, 1))

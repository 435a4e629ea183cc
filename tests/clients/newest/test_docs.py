"""The examples for clients in their newest versions."""

import re
from pathlib import Path

import pytest

from tests.clients.examples import FOUND, HELD, ROOT, examples, run

README = (ROOT / "README.md").read_text(encoding="utf-8")

# A task with three documents in place of one whose data is on the internet.
TASK = """
from datasets import Dataset

def load_data(self, *args, **options):
    texts = ["Parcels are delivered within three working days.", "Unused goods can be returned for a refund.",
             "If you forgot your password, choose a new one on the login page."]
    corpus = Dataset.from_list([{"id": str(i), "title": "", "text": text} for i, text in enumerate(texts)])
    queries = Dataset.from_list([{"id": "query", "text": "How do I get a new password?"}])
    data = {"corpus": corpus, "queries": queries, "relevant_docs": {"query": {"2": 1}}, "top_ranked": None}
    self.dataset, self.data_loaded = {"default": {"test": data}}, True

type(mteb.get_task("NFCorpus")).load_data = load_data
"""


@pytest.mark.parametrize("heading", [heading for heading in examples() if heading not in (*HELD, "MTEB")])
def test_the_example_finds_the_right_document(heading: str, apis: str, tmp_path: Path) -> None:
    assert run(*examples()[heading], apis, tmp_path) == FOUND


def test_the_readme_s_example_finds_the_right_document(apis: str, tmp_path: Path) -> None:
    [source] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "OpenAI" in block]
    assert run("python", source, apis, tmp_path) == FOUND


def test_the_example_for_mteb_evaluates_a_task(apis: str, tmp_path: Path) -> None:
    language, source = examples()["MTEB"]
    assert run(language, source.replace("import mteb\n", f"import mteb\n{TASK}", 1), apis, tmp_path) == "1.0\n"

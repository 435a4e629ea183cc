"""The commands a person types: scripts/predict.py, and a setup that fails."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import encoding
from scripts.make_openapi import ROOT
from scripts.predict import parse_inputs
from scripts.server import Server, ServerError, running_server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/predict.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_predict_starts_a_server_and_prints_json() -> None:
    result = run("--weights", "small", "-i", 'text=It\'s "quoted" = $HOME', "-i", "task=retrieval_query")
    assert result.returncode == 0, result.stderr
    prediction = json.loads(result.stdout)
    vector = encoding.decode(prediction)
    assert vector.shape == (768,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-6
    assert prediction["output"]["model"].startswith("small@")
    assert "small bundled checkpoint" in result.stderr


def test_predict_uses_a_running_server(server: Server) -> None:
    result = run("--url", server.url, "-i", "texts=one", "-i", "texts=two", "-i", "embedding_dim=128")
    assert json.loads(result.stdout)["output"]["shape"] == [2, 128]


def test_a_failed_prediction_is_printed_and_exits_with_one(server: Server) -> None:
    result = run("--url", server.url, "-i", "text= ")
    assert result.returncode == 1
    assert "text: the text is empty or blank" in json.loads(result.stdout)["error"]


def test_only_a_file_is_written_to_a_file(server: Server, tmp_path: Path) -> None:
    result = run("--url", server.url, "-i", "text=a", "-o", str(tmp_path / "a"))
    assert result.returncode == 1 and "the answer is no file; give -i file=@..., or leave -o out" in result.stderr
    assert not (tmp_path / "a").exists()


def test_no_server_at_the_url_is_said_so() -> None:
    result = run("--url", "http://127.0.0.1:9", "-i", "text=a")
    assert result.returncode == 1
    assert "Connection refused" in result.stderr
    assert "Traceback" not in result.stderr


def test_inputs_are_read_by_their_types() -> None:
    assert parse_inputs(["text=a=b", "embedding_dim=256", "normalize=false", 'texts=["a", "b"]']) == {
        "text": "a=b",
        "embedding_dim": 256,
        "normalize": False,
        "texts": ["a", "b"],
    }
    with pytest.raises(ValueError, match="-i tekst=a: expected name=value with a name among text, texts, task"):
        parse_inputs(["tekst=a"])
    with pytest.raises(ValueError, match="-i embedding_dim=many: expected integer in JSON"):
        parse_inputs(["embedding_dim=many"])


def test_weights_that_are_not_there_fail_the_setup_in_words(tmp_path: Path) -> None:
    problem = r"WEIGHTS=.*/nothing: no such directory.*name a directory in"
    with pytest.raises(ServerError, match=problem), running_server(str(tmp_path / "nothing")):
        pytest.fail("the server must not become ready")


@pytest.mark.parametrize(("name", "value"), [("CACHE_MB", "-1"), ("MAX_WAITING_TOKENS", "many")])
def test_a_setting_that_is_no_number_fails_the_setup_in_words(name: str, value: str) -> None:
    problem = f"{name} is '{value}'; set it to a whole number, or leave it unset for"
    with pytest.raises(ServerError, match=problem), running_server("small", settings={name: value}):
        pytest.fail("the server must not become ready")


def test_load_checks_every_vector_of_both_apis_and_prints_a_table() -> None:
    command = [sys.executable, "-m", "benchmarks.load", "--seconds", "3", "--settle", "1", "--clients", "16"]
    command += ["--kinds", "short", "medium", "many", "--door", "cog", "openai"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "every vector checked; wrong, lost or refused: none" in result.stderr
    assert "| small, cog | all |" in result.stderr and "| small, openai | all |" in result.stderr
    assert re.search(r"openai: [\d.]+ times the throughput of cog", result.stderr) and "open files" in result.stderr


def test_load_on_another_checkpoint_finds_every_vector_wrong(server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "checkpoints" / "small", other, ignore=shutil.ignore_patterns("canaries.json"))
    path = other / "3_Dense" / "model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path)
    command = [
        sys.executable,
        "-m",
        "benchmarks.load",
        "--url",
        server.url,
        "--weights",
        str(other),
        "--kinds",
        "short",
    ]
    command += ["--kinds", "short", "--seconds", "1", "--clients", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1
    requests = re.search(r"\| short \| (\d+) \|", result.stderr)
    assert requests and f"'wrong vector': {requests[1]}}}" in result.stderr

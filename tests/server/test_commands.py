"""The commands a person types: scripts/predict.py, and a setup that fails."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import encoding
from container.make_openapi import ROOT
from container.server import Server, ServerError, running_server
from scripts.predict import parse_inputs


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
    assert "small bundled checkpoint, for trying out; WEIGHTS= " in result.stderr


def test_predict_uses_a_running_server(server: Server) -> None:
    result = run("--url", f"{server.url}/", "-i", "texts=one", "-i", "texts=two", "-i", "embedding_dim=128")
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
    problem = r"the server's setup failed:\nWEIGHTS=.*/nothing: no such directory.*name a directory in"
    with pytest.raises(ServerError, match=problem), running_server(str(tmp_path / "nothing")):
        pytest.fail("the server must not become ready")


# What a person can get wrong, for each command, and the sentence that ends it.
WRONG: list[tuple[list[str], str]] = [
    (["predict.py", "--url", "nonsense"], "nonsense: it cannot be asked ("),
    (["predict.py", "--url", "http://[::1"], "http://[::1: it cannot be asked ("),
    (["predict.py", "--url", "http://127.0.0.1:9"], "it cannot be asked ([Errno 111] Connection refused); check the"),
    (["predict.py", "--json", "[1]"], "--json: give one object of all inputs"),
    (["predict.py", "--json", '{"text": "a", "tsk": "clustering"}'], "--json: 'tsk' is no input, and the server drops"),
    (["predict.py", "--json", "["], "--json: it is not JSON ("),
    (["predict.py", "--json", '{"chunk": NaN}'], "--json: NaN and Infinity are not JSON; give numbers"),
    (["predict.py", "--json", r'{"text": "\ud800"}'], "the inputs: they are not UTF-8; encode them"),
    (["predict.py", "-i", b"text=\xff".decode(errors="surrogateescape")], "the inputs: they are not UTF-8"),
    (["predict.py", "-i", "text=a", "-i", "text=b"], "-i text: it is given twice; give it once, and several texts as"),
    (["predict.py", "-i", "texts=a", "-i", 'texts=["b"]'], "-i texts: it is given twice; give it once"),
    (["predict.py", "-i", "text=a", "-o", "/no/a"], "-o /no/a: there is no folder /no; make it first"),
    (["predict.py", "-i", "file=@/"], "@/: cannot be read: Is a directory"),
    (["../container/probe.py", "--end", "-1"], "--end -1: give the number of a process, such as 1"),
    (["../container/probe.py", "--end", "99999999999"], "--end 99999999999: give the number of a process, such as 1"),
    (
        ["server.py", "--port", "0"],
        "port 0 of 127.0.0.1 cannot be listened on (a port is a whole number from 1 to 65,535)",
    ),
    (["server.py", "--port", "-1"], "port -1 of 127.0.0.1 cannot be listened on (a port is a whole number"),
    (
        ["server.py", "--host", "nowhere.invalid"],
        "of nowhere.invalid cannot be listened on (Name or service not known)",
    ),
    (["server.py", "--host", ""], "of '' cannot be listened on (the address is empty, which would be all of them)"),
    (["server.py", "--upload-url", "files.example"], "argument --upload-url: it is no URL; give one that begins with"),
    (
        ["server.py", "--host", "192.0.2.1"],
        "of 192.0.2.1 cannot be listened on (Cannot assign requested address); choose",
    ),
    (["fetch_weights.py", "~no-such-user/x"], "WEIGHTS=~no-such-user/x: no such directory"),
    (
        ["fetch_weights.py", "x" * 5_000],
        "': it cannot be read (File name too long); let this user read it, or name another",
    ),
    (["fetch_weights.py", "a\nb"], r"WEIGHTS='a\nb': no such directory"),
]


# Runs each command in a fork of a process that has imported what they need, and prints how each ended and what it said.
IN_FORKS = """
import json, os, runpy, sys, tempfile
import container.server, scripts.fetch_weights, scripts.predict

ended = []
for script, *arguments in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as said:
        process = os.fork()
        if process == 0:
            os.dup2(said.fileno(), 2)
            sys.argv = [f"scripts/{script}", *arguments]
            runpy.run_path(sys.argv[0], run_name="__main__")
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said.seek(0)
        ended.append((status, said.read().decode(errors="replace")))
print(json.dumps(ended))
"""


def test_no_command_ends_in_a_traceback() -> None:
    command = [sys.executable, "-c", IN_FORKS, json.dumps([command for command, _ in WRONG])]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    for (arguments, words), (status, said) in zip(WRONG, json.loads(printed), strict=True):
        assert status in (1, 2) and words in said, (arguments, said)
        assert "Traceback" not in said


def test_no_temporary_folder_is_a_sentence() -> None:
    program = "import tempfile; tempfile.tempdir = '/nowhere'; from scripts.predict import main; main()"
    command = [sys.executable, "-c", program, "-i", "text=a", "--weights", "small"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    words = "a server cannot be started (No such file or directory); set TMPDIR to a folder with room"
    assert ended.returncode == 1 and ended.stderr.splitlines()[1:] == [words]


@pytest.mark.parametrize(
    ("stdout", "words"),
    [
        ("", ""),
        (">&-", "stdout: it cannot be written to (Bad file descriptor); make room, or send it elsewhere\n"),
        ("> /dev/full", "stdout: it cannot be written to (No space left on device); make room, or send it elsewhere\n"),
    ],
    ids=["reader-has-gone", "closed", "full"],
)
def test_an_answer_that_cannot_be_written_ends_in_a_sentence(stdout: str, words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = ["bash", "-c", f'"$0" -m scripts.fetch_weights small {stdout}', sys.executable]
    ended = subprocess.run(line, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert ended.returncode == 1 and ended.stderr == words


@pytest.mark.parametrize(
    ("command", "begun"),
    [
        (["predict.py", "--weights", "small", "-i", "text=a"], "Using the small"),
        (["fetch_weights.py", "http://127.0.0.1:9/none.tar"], "fetching"),
    ],
    ids=["predict", "fetch_weights"],
)
def test_control_c_ends_a_command_without_a_traceback(command: list[str], begun: str, tmp_path: Path) -> None:
    environment = os.environ | {"WEIGHTS_CACHE": str(tmp_path)}
    full = [sys.executable, f"scripts/{command[0]}", *command[1:]]
    with subprocess.Popen(full, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr and process.stderr.readline().startswith(begun)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 130


# What make sets for a make within it, which then says "make[1]: ..." and more.
OUTSIDE_MAKE = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}


@pytest.mark.parametrize("venv", [".venv", "/{}/elsewhere"], ids=["within", "elsewhere"])
def test_make_compiles_in_a_folder_with_a_blank_in_its_name(venv: str, tmp_path: Path) -> None:
    (native := tmp_path / "my code" / "engine" / "native").mkdir(parents=True)
    folder, venv = tmp_path / "my code", venv.format(tmp_path)
    shutil.copy2(ROOT / "Makefile", folder)
    (python := folder / venv / "bin" / "python").parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$PWD: $*"\n')
    python.chmod(0o755)
    command = ["make", "-o", f"{venv}/.ready", f"VENV={venv}", "native"]
    ended = subprocess.run(command, cwd=folder, env=OUTSIDE_MAKE, capture_output=True, text=True, timeout=60)
    assert ended.stdout == f"{native}: setup.py --quiet build_ext --inplace\n", ended.stderr


@pytest.mark.parametrize("port", ["taken", "tcp://10.96.0.12:80", '"5000"'])
def test_a_port_that_cannot_be_had_is_named_before_anything_is_started(port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = str(listener.getsockname()[1]) if port == "taken" else port
        command = ["make", "-o", __file__, "serve", f"RUN={sys.executable}", f"READY={__file__}"]
        ended = subprocess.run(
            command, cwd=ROOT, env=OUTSIDE_MAKE | {"PORT": number}, capture_output=True, text=True, timeout=60
        )
    said = ended.stderr.splitlines()
    assert ended.returncode == 2 and len(said) == 2 and said[1].startswith("make: ***")
    sentence = rf"port {number} of 127\.0\.0\.1 cannot be listened on \(Address already in use\); choose a free port .*"
    assert re.fullmatch(sentence if port == "taken" else r"PORT is .*; (set it to a port|leave them out).*", said[0])


@pytest.mark.fuzz
def test_load_checks_every_vector_of_both_apis_and_prints_a_table() -> None:
    command = [sys.executable, "-m", "lab.benchmarks.load", "--seconds", "1", "--settle", "0.5", "--clients", "16"]
    command += ["--kinds", "short", "medium", "many", "--api", "cog", "openai"]
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
        "lab.benchmarks.load",
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

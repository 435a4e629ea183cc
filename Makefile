# Each target sets up .venv first if need be. By default it is the small bundled checkpoint that is served here;
# the container's own default is the genuine model.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PORT ?= 5000
WEIGHTS ?= small
TEXT ?= What is the meaning of life?
TASK ?= retrieval_document
export PORT WEIGHTS TEXT TASK INPUT OUTPUT

RUN = $(VENV)/bin/python
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check
READY = $(VENV)/.ready

.PHONY: predict serve embed load test test-ray lint format openapi build clean

predict: $(READY)  # make predict TEXT="..." TASK=retrieval_query
	@$(RUN) scripts/predict.py -i "text=$$TEXT" -i "task=$$TASK"

serve: $(READY)
	$(RUN) -m scripts.server

embed: $(READY)  # make embed INPUT=corpus.jsonl OUTPUT=vectors.parquet OPTIONS="--id key --precision int8"
	@test -n "$$INPUT" -a -n "$$OUTPUT" || { echo "make embed INPUT=corpus.jsonl OUTPUT=vectors.parquet" >&2; exit 2; }
	@$(RUN) -m scripts.embed_corpus "$$INPUT" "$$OUTPUT" $(OPTIONS)

load: $(READY)
	$(RUN) -m benchmarks.load

test: $(READY)
	$(RUN) -m pytest

test-ray: $(READY)
	@$(INSTALL) -r requirements-ray.txt >&2
	$(RUN) -m pytest -m ray

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m scripts.make_openapi --check

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

openapi: $(READY)
	$(RUN) -m scripts.make_openapi

build:
	cog build --openapi-schema openapi.json

$(READY): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...")'
	@echo "Setting up $(VENV) (once; some minutes)" >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@$(INSTALL) -r requirements-dev.txt -e . >&2
	@touch $@

clean:
	rm -rf $(VENV) .cog .mypy_cache .pytest_cache .ruff_cache *.egg-info

# Each target sets up .venv first if need be. By default it is the small bundled checkpoint that is served here; images
# have the genuine model.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PORT ?= 5000
WEIGHTS ?= small
TEXT ?= What is the meaning of life?
TASK ?= retrieval_document
# Not from the environment, where HOST is this machine's name on some systems: make serve HOST=0.0.0.0
HOST = 127.0.0.1
IMAGE ?= embeddinggemma-300m
# Cog would read less from predict.py than openapi.json says.
COG_OPENAPI_SCHEMA = openapi.json
export PORT WEIGHTS TEXT TASK INPUT OUTPUT TASKS DATA URL FORMATS OUT HELD_OUT COG_OPENAPI_SCHEMA

RUN = $(VENV)/bin/python
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check
READY = $(VENV)/.ready
NATIVE = cd engine/native && $(abspath $(RUN)) setup.py --quiet build_ext --inplace
# make build CPU=1: without CUDA
COG_FILE = $(if $(CPU),cog-cpu.yaml,cog.yaml)

.PHONY: predict serve api embed load evaluate tune tune-named tune-checked test test-fuzz test-ray test-clients test-evaluation test-tuning lint format openapi native wheel bake build push named clean

predict: $(READY)  # make predict TEXT="..." TASK=retrieval_query
	@$(RUN) scripts/predict.py -i "text=$$TEXT" -i "task=$$TASK"

serve: $(READY)
	$(RUN) -m scripts.server --host $(HOST)

api: PORT = 8080
api: $(READY)  # the APIs of OpenAI, Gemini, TEI, Ollama and Cohere, without Cog's: make api PORT=8080 HOST=0.0.0.0
	$(RUN) -m scripts.api --host $(HOST)

embed: $(READY)  # make embed INPUT=corpus.jsonl OUTPUT=vectors.parquet OPTIONS="--id key --precision int8"
	@test -n "$$INPUT" -a -n "$$OUTPUT" || { echo "make embed INPUT=corpus.jsonl OUTPUT=vectors.parquet" >&2; exit 2; }
	@$(RUN) -m scripts.embed_corpus "$$INPUT" "$$OUTPUT" $(OPTIONS)

load: $(READY)
	$(RUN) -m benchmarks.load

# make evaluate [TASKS=...|DATA=my/] [WEIGHTS=...|URL=http://...] [FORMATS=...] [OUT=folder] [OPTIONS="--prompts ..."]
evaluate: $(VENV)/.evaluation
	@$(RUN) -m evaluation $(if $(TASKS),--tasks "$$TASKS") $(if $(DATA),--data "$$DATA") $(if $(URL),--url "$$URL") \
		$(if $(FORMATS),--formats "$$FORMATS") $(if $(OUT),--out "$$OUT") $(OPTIONS)

# make tune DATA=pairs.jsonl OUT=tuned [WEIGHTS=...] [HELD_OUT=file] [OPTIONS="--epochs 3"]
TUNE = $(RUN) -m tuning --data "$$DATA" --out "$$OUT" $(if $(HELD_OUT),--held-out "$$HELD_OUT") $(OPTIONS)

tune: tune-named tune-checked $(VENV)/.tuning
	@$(TUNE)

tune-named:
	@test -n "$$DATA" -a -n "$$OUT" || { echo "make tune DATA=pairs.jsonl OUT=tuned" >&2; exit 2; }

tune-checked: tune-named $(READY)  # before the trainer's companions are installed
	@$(TUNE) --check

# Two processes share the cores only where their threads do not spin while they wait.
test: $(READY)
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -n 2 --dist loadfile

test-fuzz: $(READY)
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -n 2 --dist loadfile -m fuzz tests/server

test-ray: $(READY)
	@$(INSTALL) -r requirements-ray.txt >&2
	$(RUN) -m pytest -m ray

test-evaluation: $(VENV)/.evaluation
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -n 2 --dist loadfile -m evaluation tests/evaluation tests/judging

test-tuning: $(VENV)/.tuning
	OMP_WAIT_POLICY=passive $(RUN) -m pytest -n 2 --dist loadfile -m tuning tests/tuning

# Other APIs' clients, in environments of their own, against a server from $(VENV).
test-clients: export SERVER_PYTHON = $(abspath $(RUN))
test-clients: $(READY) .venv-clients/.ready .venv-clients-held/.ready tests/clients/node/node_modules
	.venv-clients/bin/python -m pytest tests/clients/newest
	.venv-clients-held/bin/python -m pytest tests/clients/held

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

bake: $(READY)  # the genuine weights, which go into the image, verified; make bake WEIGHTS=owner/name for others
	WEIGHTS=$(if $(filter file,$(origin WEIGHTS)),,$(WEIGHTS)) $(RUN) -m scripts.fetch_weights --bake

build: bake native $(COG_FILE)  # make build [CPU=1] [IMAGE=name]
	cog build -f $(COG_FILE) -t $(IMAGE)

push: named bake native $(COG_FILE)  # make push MODEL=r8.im/you/name [CPU=1]
	cog push -f $(COG_FILE) $(MODEL)

named:
	@test -n "$(MODEL)" || { echo "make push MODEL=r8.im/you/name" >&2; exit 2; }

cog-cpu.yaml: cog.yaml
	sed -e 's/gpu: true/gpu: false/' -e '/cuda:/d' cog.yaml > $@

$(READY): requirements-local.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...")'
	@echo "Setting up $(VENV) (once; some minutes)" >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@$(INSTALL) -r requirements-dev.txt -e . >&2
	@$(NATIVE) >&2
	@touch $@

$(VENV)/.evaluation: $(READY) requirements-evaluate.txt
	@$(INSTALL) -r requirements-evaluate.txt >&2
	@touch $@

$(VENV)/.tuning: $(VENV)/.evaluation requirements-tune.txt
	@$(INSTALL) -r requirements-tune.txt >&2
	@touch $@

.venv-%/.ready: requirements-%.txt
	@echo "Setting up .venv-$* (once; some minutes)" >&2
	@$(PYTHON) -m venv .venv-$* >&2
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $< >&2
	@touch $@

tests/clients/node/node_modules: tests/clients/node/package.json
	@command -v npm >/dev/null || { echo "make test-clients needs Node.js with npm, for OpenAI's client in JavaScript" >&2; exit 1; }
	@npm install --prefix $(@D) --no-audit --no-fund --no-package-lock --loglevel=error >&2
	@touch $@

native: $(READY)  # the C++ extension for CPUs, beside its source; without a compiler everything runs without it, slower
	@$(NATIVE)

wheel: $(READY)  # the extension as a wheel in dist/, for machines like this one but without a compiler
	$(RUN) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist engine/native

clean:
	rm -rf $(VENV) .venv-clients* tests/clients/node/node_modules .cog cog-cpu.yaml .mypy_cache .pytest_cache .ruff_cache *.egg-info dist
	rm -rf engine/native/build engine/native/*.so engine/native/*.egg-info

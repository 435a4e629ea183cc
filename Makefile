# Each target sets up .venv first if it is missing. Targets here use the small bundled checkpoint unless WEIGHTS names another
# (WEIGHTS= is the official model); images have the official model.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PORT ?= 5000
WEIGHTS ?= small
TEXT ?= What is the meaning of life?
TASK ?= retrieval_document
# Not from the environment, as HOST is this machine's name on some systems.
HOST = 127.0.0.1
IMAGE ?= embeddinggemma-300m
# openapi.json says more than Cog can read from predict.py.
COG_OPENAPI_SCHEMA = container/openapi.json
# cog.yaml pins only cog; without this, Cog installs coglet's newest release into an image.
COGLET_WHEEL = pypi:0.23.1
export PORT WEIGHTS TEXT TASK NAME INPUT OUTPUT TASKS DATA URL FORMATS OUT HELD_OUT COG_OPENAPI_SCHEMA COGLET_WHEEL

RUN = $(VENV)/bin/python
INSTALL = $(RUN) -m pip install --quiet --disable-pip-version-check
READY = $(VENV)/.ready
# Not abspath, which a blank in the path divides.
FROM_ROOT = $(if $(filter /%,$(RUN)),,$(CURDIR)/)$(RUN)
NATIVE = cd engine/native && "$(FROM_ROOT)" setup.py --quiet build_ext --inplace
# make build CPU=1 builds without CUDA.
COG_FILE = $(if $(CPU),cog-cpu.yaml,cog.yaml)
# The settings of the tests: processes share cores only if waiting threads do not spin, and hundreds of them read what the
# first has compiled. A third one uses two cores while the others wait for servers.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive $(RUN) -m pytest
IN_TWO = -n 2 --dist loadfile
IN_THREE = -n 3 --dist loadfile
EXAMPLES = $(sort $(basename $(notdir $(shell grep -l __main__ examples/*.py))))
VERSION = $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' settings/version.py)

.DEFAULT_GOAL = help
.PHONY: help predict embed serve api example example-named native load evaluate tune tune-named tune-checked test test-fuzz test-abuse test-page test-clients \
	test-clients-newest test-clients-held test-examples test-gpu-compile test-evaluation test-tuning test-lab test-ray clients lint format openapi lock bake build push named wheel clean

help:
	@echo "make TARGET [NAME=value ...]; WEIGHTS= is the official model, not the small one"
	@awk -F ': .*## ' '/^##@/ {print substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' Makefile

##@ Try
predict: $(READY) ## print the vector of TEXT="..." for TASK=retrieval_query
	@$(RUN) scripts/predict.py -i "text=$$TEXT" -i "task=$$TASK"

embed: $(READY) ## embed files: INPUT=a.jsonl OUTPUT=b.parquet OPTIONS="..."
	@test -n "$$INPUT" -a -n "$$OUTPUT" || { echo "make embed INPUT=corpus.jsonl OUTPUT=vectors.parquet" >&2; exit 2; }
	@$(RUN) -m scripts.embed_corpus "$$INPUT" "$$OUTPUT" $(OPTIONS)

##@ Serve
serve: $(READY) ## Cog's API, and others on API_PORT: PORT=5000 HOST=0.0.0.0
	$(RUN) -m scripts.server --host $(HOST)

api: PORT = 8080
api: $(READY) ## the other APIs, OpenAI's and six more: PORT=8080
	$(RUN) -m scripts.api --host $(HOST)

example: example-named .venv-examples/.ready ## run NAME=bits of examples/, beside make serve: ARGS="..."
	@.venv-examples/bin/python -m "examples.$$NAME" $(if $(ARGS),"$$ARGS")

example-named:
	@test -f "examples/$$NAME.py" || { echo "make example NAME=..., one of $(EXAMPLES)" >&2; exit 2; }

native: $(READY) ## recompile the C++ extension, which speeds up CPUs
	@$(NATIVE)

##@ Measure
load: $(READY) ## throughput and latency of a server under 64 clients
	$(RUN) -m lab.benchmarks.load

# make evaluate [TASKS=...|DATA=my/] [WEIGHTS=...|URL=http://...] [FORMATS=...] [OUT=folder] [OPTIONS="--prompts ..."]
evaluate: $(VENV)/.evaluation ## quality of WEIGHTS= or a server's URL=, on TASKS= or DATA=
	@$(RUN) -m lab.evaluation $(if $(TASKS),--tasks "$$TASKS") $(if $(DATA),--data "$$DATA") $(if $(URL),--url "$$URL") \
		$(if $(FORMATS),--formats "$$FORMATS") $(if $(OUT),--out "$$OUT") $(OPTIONS)

# make tune DATA=pairs.jsonl OUT=tuned [WEIGHTS=...] [HELD_OUT=file] [OPTIONS="--epochs 3"]
TUNE = $(RUN) -m lab.tuning --data "$$DATA" --out "$$OUT" $(if $(HELD_OUT),--held-out "$$HELD_OUT") $(OPTIONS)

tune: tune-named tune-checked $(VENV)/.tuning ## train on DATA=pairs.jsonl into OUT=tuned, and compare
	@$(TUNE)

tune-named:
	@test -n "$$DATA" -a -n "$$OUT" || { echo "make tune DATA=pairs.jsonl OUT=tuned" >&2; exit 2; }

tune-checked: tune-named $(READY)  # before the trainer's packages are installed
	@$(TUNE) --check

##@ Test
test: $(READY) ## the test suite, without the parts below
	$(PYTEST) $(IN_THREE)

test-fuzz: $(READY) ## odd bodies, files and checkpoints by the thousand; long runs
	$(PYTEST) -n 3 --dist worksteal -m fuzz

test-abuse: $(READY) ## hostile clients, and what others notice: ABUSE_SECONDS=2
	$(PYTEST) -q -m abuse tests/abuse

test-page: $(VENV)/.page ## the page in a browser (needs chromium and chromedriver)
	$(PYTEST) $(IN_TWO) -m page tests/api/page

# In environments of their own, against a server from $(VENV).
test-clients: test-clients-newest test-clients-held ## the clients of the other APIs (needs npm)

test-clients-newest test-clients-held: export SERVER_PYTHON = $(FROM_ROOT)
test-clients-newest: $(READY) clients
	.venv-clients/bin/python -m pytest tests/clients/newest

test-clients-held: $(READY) clients
	.venv-clients-held/bin/python -m pytest tests/clients/held

test-examples: export SERVER_PYTHON = $(FROM_ROOT)
test-examples: $(READY) .venv-examples/.ready ## the programs in examples/, with real databases
	.venv-examples/bin/python -m pytest tests/examples

test-gpu-compile: $(READY) ## Triton kernels for four more kinds of GPU, in more shapes
	$(PYTEST) -n 2 -m gpu_compile tests/engine

test-evaluation: $(VENV)/.evaluation ## the parts of make evaluate that need its packages
	$(PYTEST) $(IN_TWO) -m evaluation tests/lab/evaluation tests/lab/judging

test-tuning: $(VENV)/.tuning ## the parts of make tune that need its packages
	$(PYTEST) $(IN_TWO) -m tuning tests/lab/tuning

# The longest files come first.
test-lab: $(VENV)/.tuning ## both of these at once
	$(PYTEST) $(IN_TWO) -m "evaluation or tuning" tests/lab/tuning tests/lab/evaluation tests/lab/judging

test-ray: $(READY) ## embed a corpus on a Ray cluster
	@$(INSTALL) -r requirements/ray.txt >&2
	$(RUN) -m pytest -m ray

lint: $(READY) ## ruff, mypy, and whether openapi.json is up to date
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m container.make_openapi --check

format: $(READY) ## fix what ruff can fix
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

openapi: $(READY) ## write container/openapi.json from predict.py
	$(RUN) -m container.make_openapi

##@ Ship
# Cog puts GITHUB_REF_NAME into the image's label org.opencontainers.image.version.
build push: export GITHUB_REF_NAME = v$(VERSION)
build: bake native $(COG_FILE) ## an image with the weights in it: CPU=1 IMAGE=name
	cog build -f $(COG_FILE) -t $(IMAGE)

push: named bake native $(COG_FILE) ## to Replicate: MODEL=r8.im/you/name CPU=1
	cog push -f $(COG_FILE) $(MODEL)

named:
	@test -n "$(MODEL)" || { echo "make push MODEL=r8.im/you/name" >&2; exit 2; }

bake: $(READY) ## fetch and verify the image's weights: WEIGHTS=owner/name
	WEIGHTS=$(if $(filter file,$(origin WEIGHTS)),,$(WEIGHTS)) $(RUN) -m scripts.fetch_weights --bake

wheel: $(READY) ## the C++ extension in dist/, for machines without a compiler
	$(RUN) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist engine/native

# Everything that is served, and what that needs, with hashes.
LOCK = $(RUN) -m uv pip compile --quiet $(OPTIONS)
lock: $(READY) ## pin what is served by requirements/: OPTIONS=--upgrade
	@$(INSTALL) uv==0.13.9 >&2
	$(LOCK) --universal --no-emit-package torch requirements/local.txt -o requirements/local.lock
	@# Cog installs itself and its server; what they need is pinned here.
	grep -h '^cog' requirements/local.txt | $(LOCK) --python-platform x86_64-manylinux_2_28 --no-emit-package cog \
		--no-emit-package coglet requirements/image.txt - -o requirements/image.lock
	$(LOCK) --python-platform x86_64-manylinux_2_28 requirements/push.txt -o requirements/push.lock

clean: ## remove what make has made, except weights
	rm -rf $(VENV) .venv-clients* .venv-examples tests/clients/node/node_modules .cog cog-cpu.yaml .mypy_cache .pytest_cache .ruff_cache *.egg-info dist
	rm -rf engine/native/build engine/native/*.so engine/native/*.egg-info

cog-cpu.yaml: cog.yaml
	sed -e 's/gpu: true/gpu: false/' -e '/cuda:/d' cog.yaml > $@

clients: .venv-clients/.ready .venv-clients-held/.ready tests/clients/node/node_modules

$(READY): requirements/local.lock requirements/local.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...")'
	@echo "Setting up $(VENV) (once; some minutes)" >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@$(INSTALL) --require-hashes --no-deps -r requirements/local.lock >&2
	@$(INSTALL) -r requirements/dev.txt >&2
	@# Python finds the modules from any folder.
	@echo "$(CURDIR)" > "$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/embeddinggemma.pth"
	@$(NATIVE) >&2
	@touch $@

$(VENV)/.page: $(READY) requirements/page.txt
	@$(INSTALL) --no-deps -r requirements/page.txt >&2
	@touch $@

$(VENV)/.evaluation: $(READY) requirements/evaluate.txt
	@$(INSTALL) -r requirements/evaluate.txt >&2
	@touch $@

$(VENV)/.tuning: $(VENV)/.evaluation requirements/tune.txt
	@$(INSTALL) -r requirements/tune.txt >&2
	@touch $@

.venv-%/.ready: requirements/%.txt
	@echo "Setting up .venv-$* (once; some minutes)" >&2
	@$(PYTHON) -m venv .venv-$* >&2
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $< >&2
	@touch $@

tests/clients/node/node_modules: tests/clients/node/package.json
	@command -v npm >/dev/null || { echo "make test-clients needs Node.js with npm, for OpenAI's client in JavaScript" >&2; exit 1; }
	@npm install --prefix $(@D) --no-audit --no-fund --no-package-lock --loglevel=error >&2
	@touch $@

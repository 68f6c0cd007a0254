# make train      the whole default run on this machine: set-up, warm start, RL, evaluation, report
# make evaluate   the trained model on the held-out questions; another one by ARGS="model.path=..."
# make findings   the paper's five findings, in small, over three seeds (about an hour)
# make fvqa       builds a search-balanced data set of Atlas, with the policy that make train trained
# make serve      answers over HTTP on 127.0.0.1:8000 with the trained model; make stop ends it
# make test       what CI runs: lint, types, every test
# make lint       lint and types only
# make stop       stop a run that goes on in the background, and its local Ray
PYTHON ?= python3
EXTRA ?=
CONFIG ?= jobs/configs/atlas.yaml
SERVING ?= jobs/configs/serve_atlas.yaml
EVALUATION ?= jobs/configs/evaluate_atlas.yaml
WORKERS ?= 2
ARGS ?=
VENV := .venv/bin

.PHONY: setup train evaluate findings fvqa serve test lint format stop

setup:
	@$(PYTHON) jobs/setup.py $(if $(EXTRA),--extra $(EXTRA))

train: setup
	@$(VENV)/python jobs/submit.py -- python jobs/train.py --config $(CONFIG) --default run.dir=$(CURDIR)/runs $(ARGS)

evaluate: setup
	@$(VENV)/python jobs/submit.py -- python jobs/evaluate.py --config $(EVALUATION) --default run.dir=$(CURDIR)/runs $(ARGS)

findings: setup
	@$(VENV)/python jobs/submit.py -- python jobs/findings.py --config jobs/configs/findings.yaml run.dir=$(CURDIR)/runs $(ARGS)

fvqa: setup
	@$(VENV)/python jobs/submit.py -- python jobs/build_fvqa.py --config jobs/configs/build_atlas.yaml run.dir=$(CURDIR)/runs $(ARGS)

serve: setup
	@$(VENV)/python jobs/submit.py -- python jobs/serve.py --config $(SERVING) --default run.dir=$(CURDIR)/runs $(ARGS)

# Byte code is kept, and tests/starting is what every process starts with: what the tests cost is mostly starts of processes.
test: lint
	@PYTHONDONTWRITEBYTECODE= PYTHONPATH=$(CURDIR)/tests/starting$${PYTHONPATH:+:$$PYTHONPATH} OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	@$(VENV)/ruff check --quiet .
	@$(VENV)/ruff format --check --quiet . || { echo "make format writes these files as the formatter wants them:"; $(VENV)/ruff format --check .; exit 1; }
	@$(VENV)/pyright --warnings

format: setup
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

stop:
	@$(VENV)/python jobs/submit.py --stop

# `make` alone lists the verbs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(shell find cpp -type f 2>/dev/null)

.PHONY: help run test check format clients bench parity gpu-kernels golden fuzz api-fuzz faults soak mead asan docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  f"Kvasir needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor} (try make PYTHON=python3.12)" or 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(NATIVE)
	@echo "building the extension (about a minute) ..."
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The packages of an extra of pyproject.toml, without building the extension again.
extra = $(BIN)/python -c 'import tomllib as t; \
  print(*t.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(1)"], sep="\n")' \
  | $(or $(2),$(BIN)/pip) install --quiet --disable-pip-version-check --requirement /dev/stdin

$(VENV)/tested: $(VENV)/installed
	$(call extra,test)
	@touch $@

$(VENV)/compared: $(VENV)/tested
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(call extra,parity)
	@touch $@

run: $(VENV)/installed  ## make the environment, build, and have the built-in model answer
	$(BIN)/kvasir run mead --verbose "Explain DNS in one sentence."

test: $(VENV)/tested  ## make the environment and pass the tests
	$(BIN)/python -m pytest

check: $(VENV)/tested  ## lint, formatting, types, stale docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/tested  ## format the Python files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# LiteLLM needs an older client of OpenAI than the tests, so these have an environment of their own.
.clients/venv/made: pyproject.toml $(BIN)/python
	$(BIN)/python -m venv .clients/venv
	$(call extra,clients,.clients/venv/bin/pip)
	@touch $@

clients: $(VENV)/tested .clients/venv/made  ## fetch npm's ollama (needs node), LiteLLM and lm-eval (1 GB), run the clients' tests
	npm install --silent --prefix .clients ollama
	$(BIN)/python -m pytest tests/wire

bench: $(VENV)/tested  ## decode, prefill and start-up on this machine, with the limits beside them
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/decode.py
	$(BIN)/python bench/prefill.py

parity: $(VENV)/compared  ## compare with transformers live, make golden files, test the CUDA backend (torch)
	$(BIN)/python -m pytest tests/cuda
	$(BIN)/python -m tests.parity.make

gpu-kernels: $(VENV)/compared  ## compile every kernel in all its configurations for sm_80, 90 and 100 (no GPU)
	$(BIN)/python -m tests.cuda.candidates

golden: $(VENV)/tested  ## write the golden plans anew
	$(BIN)/python -m tests.golden_plans

fuzz: $(VENV)/tested  ## fuzz the checkpoint readers for ten minutes
	$(BIN)/python -m tests.fuzz_checkpoints --seconds 600

api-fuzz: $(VENV)/tested  ## send what the OpenAPI document allows and forbids, to every path (minutes)
	$(BIN)/python -m tests.wire.api_fuzz

faults: $(VENV)/tested  ## kill, stop and starve models' processes 20 times each, and print who was told when
	$(BIN)/python -m tests.faults.repeat --times 20

soak: $(VENV)/tested  ## two hours of mixed requests, half of them cancelled: nothing stuck, lost or growing
	$(BIN)/python -m tests.soak --seconds 7200

mead: $(VENV)/compared  ## train the built-in model and its draft again (two cores: some hours)
	$(BIN)/python -m training.all

docs: $(VENV)/tested  ## write the generated parts of the docs anew
	$(BIN)/python -m tests.docs

asan: $(VENV)/tested  ## build the extension with the address sanitizer and run the kernel tests on it
	$(BIN)/pip install --quiet --disable-pip-version-check cmake ninja nanobind
	cpp/asan.sh

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f kvasir/*.so

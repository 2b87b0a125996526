# Every target does its own set-up, in .venv, once; it is redone when pyproject.toml or setup.cfg changes.
# To start over with another Python: make clean, then make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
COMMA := ,
# The CUDA toolkit is large: it is installed only where there is a GPU to use it.
GPU = $(or $(wildcard /proc/driver/nvidia/version),$(shell nvidia-smi -L 2>/dev/null))
EXTRAS = dev$(if $(GPU),$(COMMA)cuda)

.PHONY: help train chat test lint wheel clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

train: $(READY)  ## train the nano preset; flags in ARGS="--steps 200"
	$(BIN)/neurogen train --preset nano $(ARGS)

chat: $(READY)  ## talk to the model trained last
	$(BIN)/neurogen chat --auto-load-latest $(ARGS)

test: $(READY)  ## run the tests, then those of the CUDA kernels in Numba's simulator; some of them with ARGS="-k cli"
	$(BIN)/python -m pytest $(ARGS)
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest -m gpu -n auto $(ARGS)$(if $(ARGS), || [ $$? = 5 ])  # 5: ARGS chose none of these

lint: $(READY)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: $(READY)  ## build dist/*.whl
	rm -rf build dist *.egg-info  # setuptools packs what it finds in build/, modules deleted since included
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## delete .venv and everything built; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find kernels neurogen_numba tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "NeuroGen needs Python 3.10 or newer, and $(PYTHON) says: $$($(PYTHON) --version 2>&1 | head -n 1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Setting up .venv with [$(EXTRAS)]: once, a few minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# Every target sets up .venv first, once, and again when pyproject.toml or setup.cfg changes: `train` and `chat` install the package, the
# other targets add the tools of development.
# To start over with another Python: make clean, then make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PACKAGE := .venv/package
READY := .venv/ready
# The CUDA toolkit is large, so it is installed only on a machine with a GPU.
GPU = $(or $(wildcard /proc/driver/nvidia/version),$(shell nvidia-smi -L 2>/dev/null))
CUDA = $(if $(GPU),[cuda])

# Tests of `quick`: kernels against the reference, wiring, training steps of a tiny brain, the command line.
QUICK = $(filter-out tests/test_kernel_jit.py tests/test_kernel_cache.py,$(wildcard tests/test_kernel_*.py)) tests/test_bundles.py tests/test_connectome.py \
	tests/test_backend.py tests/test_activation_checkpointing.py tests/test_cli.py
# On a GPU the tests run in one process; otherwise in one process per core, which takes whole files.
SPREAD = $(if $(GPU),,-n auto --dist loadfile)

.PHONY: help train chat test quick notebooks lint types docs wheel clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

train: $(PACKAGE)  ## train the nano preset; flags in ARGS="--steps 200"
	$(BIN)/neurogen train --preset nano $(ARGS)

chat: $(PACKAGE)  ## talk to the model that was trained last
	$(BIN)/neurogen chat --auto-load-latest $(ARGS)

test: $(READY)  ## run the tests, then those of the CUDA kernels in Numba's simulator; some of them with ARGS="-k cli"
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest -m gpu -n auto --dist loadfile $(ARGS)$(if $(ARGS), || [ $$? = 5 ])  # 5: ARGS selected no tests

quick: $(READY)  ## a minute of tests after a change of a line: kernels against the reference, a tiny brain, the command line
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not gpu" $(QUICK)

notebooks: $(READY)  ## install Jupyter and run the notebooks in examples/
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[notebooks]'
	$(BIN)/python -m pytest -m notebooks -n auto $(ARGS) tests/test_notebooks.py

lint: $(READY)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check that every public name has a complete type
	@mkdir -p build/types/neurogen_numba
	@ln -sfn $(addprefix $(CURDIR)/,$(wildcard neurogen_numba/*)) build/types/neurogen_numba/
	@ln -sfn $(CURDIR)/kernels build/types/neurogen_numba/kernels
	$(BIN)/basedpyright

docs: $(READY)  ## build the documentation in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

wheel: $(READY)  ## build dist/*.whl
	rm -rf build dist *.egg-info  # setuptools would also pack old files in build/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## delete .venv and everything built; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find kernels neurogen_numba tests -name __pycache__ -prune -exec rm -rf {} +

$(PACKAGE): pyproject.toml setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "NeuroGen needs Python 3.10 or newer, and $(PYTHON) says: $$($(PYTHON) --version 2>&1 | head -n 1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Setting up .venv with the package$(if $(CUDA), and the CUDA toolkit): once, a few minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.$(CUDA)'
	@touch $@

$(READY): $(PACKAGE)
	@echo "Adding the tools of development to .venv: once, a few minutes"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

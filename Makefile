# The two commands a newcomer needs are `make demo` and `make test`; both set up everything they use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# The converter from PyTorch to TensorFlow Lite needs older libraries than the rest, and lives in an environment of its
# own. It borrows torch from $(VENV).
LITERT_TORCH := $(abspath $(VENV))/toolchains/litert-torch
test unit e2e bench: export SKERRY_TOOLCHAIN_LITERT_TORCH ?= $(LITERT_TORCH)/bin/python

.PHONY: help demo test check unit e2e wheel bench format clean

help: ## Say what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## The whole way of a model, on this machine, in about three minutes
	@$(BIN)/skerry demo

test: check wheel ## Everything the checks run: linters, types, tiers, and all tests against the built wheel
	@$(VENV)/wheel/bin/python -m pytest tests

check: $(VENV)/.dev ## Linters, types and import tiers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit: $(VENV)/.dev ## The quick tests, against the tree
	@$(BIN)/python -m pytest tests/unit tests/contract

e2e: $(VENV)/.dev ## The demo and the tutorial as tests, against the tree
	@$(BIN)/python -m pytest tests/e2e

# The wheel goes into an environment of its own that borrows the dependencies, so that the tests import what users
# will install and not the tree.
wheel: $(VENV)/.dev
	@rm -rf dist && $(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	@test -d $(VENV)/wheel || $(BIN)/python -m venv --without-pip $(VENV)/wheel
	@$(BIN)/python -c "import pathlib, sysconfig; site = sysconfig.get_path('purelib'); \
	  target = sysconfig.get_path('purelib', vars={'base': '$(abspath $(VENV))/wheel'}); \
	  pathlib.Path(target, 'borrowed.pth').write_text(site + '\n')"
	@$(PIP) --python $(VENV)/wheel/bin/python install --quiet --no-deps --force-reinstall --no-index dist/*.whl

bench: $(VENV)/.dev ## Print the figures of docs/performance.md anew
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## Remove what was built and installed
	rm -rf $(VENV) dist build

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
	  { echo "error: $(PYTHON) has no venv; install it, as in: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo src/skerry/optimize/toolchains/litert_torch.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@rm -rf $(LITERT_TORCH)
	@$(BIN)/python -m skerry.optimize.toolchains install litert-torch --into $(LITERT_TORCH)
	@touch $@

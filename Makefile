# Two commands do all on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STORE ?= atose_store

.PHONY: demo test test-fast lint lock clean

demo: $(VENV)/.product  ## render the demo data, search it, print where the report is
	$(BIN)/python -m atose_ray.prepare demo --store $(STORE)
	$(BIN)/python -m atose_ray.tune demo --store $(STORE)

test: $(VENV)/.dev  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/.dev  ## without what starts Ray or takes long
	$(BIN)/python -m pytest -m "not slow and not ray and not browser"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.product: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.product requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@

lock:  ## pin again what pyproject.toml asks for (needs pip-tools)
	pip-compile --quiet --strip-extras --upgrade-package torch==2.14.1 --upgrade-package torchaudio==2.11.0 --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --allow-unsafe --output-file requirements.lock pyproject.toml
	pip-compile --quiet --strip-extras --upgrade-package torch==2.14.1 --upgrade-package torchaudio==2.11.0 --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --allow-unsafe --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) build *.egg-info

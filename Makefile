# Two commands do all on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STORE ?= atose_store
ATOSE_CHAOS ?= 1
PYTEST := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint docs lock clean

demo: $(VENV)/.product  ## render the demo data, search it, print where the report is
	$(BIN)/python -m atose_ray.prepare demo --store $(STORE)
	$(BIN)/python -m atose_ray.tune demo --store $(STORE)

test: $(VENV)/.dev  ## every room of the package once, and one search end to end on Ray
	$(BIN)/python -m pytest $(PYTEST) -m "not slow"

test-all: $(VENV)/.dev  ## all the rest too, chaos included: nightly and before a release
	ATOSE_CHAOS=$(ATOSE_CHAOS) $(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## the documentation as a site: site/index.html, which opens from the disk
	$(BIN)/python -m mkdocs build --strict

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
	rm -rf $(VENV) build site *.egg-info

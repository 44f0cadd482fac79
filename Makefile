# `make demo` and `make test` do all the set-up: a virtual environment with the tested versions. (Most of
# what is installed is never imported; compiling it all would take two minutes.)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs notebooks clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[test,lint]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/fusionrag demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in site/; a warning ends it.
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

# Runs the notebooks anew, and keeps what they show.
notebooks: $(VENV)/.installed
	$(BIN)/python -m tests.notebooks examples/*.ipynb

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache

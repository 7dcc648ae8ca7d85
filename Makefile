# What people type: `make demo` and `make test`. Needs Python 3.11+ and a package index, nothing else.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
READY := .venv/.ready
DEMO ?=
# Two workers, a file of tests at a time.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check chaos week bench audit lock clean distclean

demo: $(READY)  ## the whole pipeline on the packaged pictures
	$(BIN)/python run_pipeline.py --stages all $(DEMO)

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(READY)  ## everything: servers, clusters, faults; up to 45 minutes
	$(BIN)/python -m pytest $(PARALLEL) -m ""

check: $(READY)  ## format, lint, types, import contracts, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not thorough" --durations=0 --durations-min=5

chaos: $(READY)  ## random faults against a small pipeline; make chaos MINUTES=15 SEED=0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),15) --seed $(or $(SEED),0)

week: $(READY)  ## seven scheduled retrainings on emoji that arrive in parts, and what can go wrong; WEEK='--runtime local' for larger nets
	$(BIN)/python -m tests.week $(or $(WEEK),--small)

bench: $(READY)  ## every benchmark; each prints a table and, last, one line of JSON
	@for file in tests/benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

audit: $(READY)  ## what is known against the pinned packages
	$(BIN)/python -m tests.audit --uv $(UV)

lock: $(READY)  ## pin the dependencies anew
	$(UV) pip compile --universal --generate-hashes --python-version 3.11 --group dev --no-header \
		--no-emit-index-url --no-emit-find-links --upgrade pyproject.toml -o requirements.lock

clean:  ## results and caches; the environment stays
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .uv

$(READY): requirements.lock $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	touch $@

# uv where there is none: into a virtual environment of its own, from the package index
.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv

# make compare   the main job: every family on real digits, one table, one page
# make test      lint, types, import directions, tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
# versions to install; `make setup CONSTRAINTS=` installs the newest that pyproject.toml allows
CONSTRAINTS ?= constraints.txt

# waiting threads spin for a few microseconds, then sleep: see docs/decisions/networks.md
ifndef OMP_WAIT_POLICY
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT ?= 500
endif

.PHONY: setup compare test test-all bench docs docs-serve format clean

setup: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS) hatch_build.py src/loglik/cpu/native/spline.c
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	touch $@

compare: $(READY)
	$(BIN)/loglik compare digits --out runs/compare-digits $(ARGS)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --dist worksteal $(ARGS)

test-all: $(READY)
	$(BIN)/pytest $(ARGS)

bench: $(READY)
	PYTHON=$(PYTHON) $(BIN)/python benchmarks/run.py $(if $(DEVICE),--device $(DEVICE)) $(if $(ONLY),--only $(ONLY)) $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(ARGS)

docs: $(VENV)/docs-ready
	rm -rf site build/verified.json build/tutorials docs/assets/pictures docs/assets/tutorials
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/hooks/links.py site

docs-serve: $(VENV)/docs-ready
	$(BIN)/mkdocs serve

$(VENV)/docs-ready: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[docs]'
	touch $@

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

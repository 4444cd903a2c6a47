# Everything a clean clone needs: Python 3.10+ and make.
#   make demo    train, generate and report on real audio (about 12 minutes on 2 cores after installation)
#   make test    the tests; make slow: those of a minute and more, and those in a browser
#   make check   style, formatting, types and docs; make types: the type checker alone
#   make docs    the docs as a site, into site/; broken links fail, and nothing is fetched
#   make wheel   sdist and wheel, into dist/
#   make bench   speed and memory, into docs/performance.md (DEVICE=cuda on a GPU); never part of the tests
#   make torture what is promised under faults, at full size: 100 kills, 10,000 steps (docs/promises.md)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and by its own line: asked for as somebody's dependency, pip may choose a build with gigabytes of CUDA.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: bench docs wheel setup demo study tables test torture check types fresh format clean slow

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "segue needs Python 3.10 or newer; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/segue demo --out runs/demo

# The runs and the tables of docs/results.md: hours of CPU; killed, the same command goes on.
STUDIES := notes notes-long targets-notes targets-ramp muon-rate blocks sizes super-resolution super-resolution-regime
# Those of other sounds need the sets of benchmarks/kinds_of_sound.py in runs/kinds (docs/studies.md).
KINDS := $(if $(wildcard runs/kinds/speech-cache),speech drums effects targets-effects)
# Variants that the claims are measured against, beside each study's own baseline.
AGAINST := notes:static-muon notes:static-muon-half notes:stage-muon-half-no-alignment notes:static-shifted notes:static-shifted-muon notes:time-ramp notes:stage notes-long:static-shifted notes-long:time-ramp blocks:random effects:static-muon super-resolution-regime:sr-demo-by-slope
study: setup
	for s in $(STUDIES) $(KINDS); do $(BIN)/segue-lab study studies/$$s.json --out runs/$$s || exit; done
	$(MAKE) tables

# Of studies that have begun; those that have not stand as "not run" in the table of claims.
tables: setup
	for s in $(STUDIES) $(KINDS); do test ! -d runs/$$s/runs || $(BIN)/segue-lab study studies/$$s.json --out runs/$$s --report-only --markdown docs/tables/$$s.md || exit; done
	for p in $(AGAINST); do s=$${p%%:*}; test ! -d runs/$$s/runs || $(BIN)/segue-lab study studies/$$s.json --out runs/$$s --report-only --baseline $${p##*:} || exit; done
	$(BIN)/python docs/make_results.py runs

# One process a core and one thread a process: two processes of two threads on two cores get in each other's way.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# What takes a minute and more, and the page in a browser (needs Chromium): before a release, and after changes there.
slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m slow

torture: setup
	$(BIN)/python tests/torture

DEVICE ?= auto
bench: setup
	$(BIN)/python benchmarks/bench.py --out runs/bench --device $(DEVICE)

check: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

wheel: setup
	rm -rf dist
	$(BIN)/python -m build

types: setup
	$(BIN)/mypy

# In environments of their own: what the base dependencies alone do, and what [train] alone does. Minutes, by hand.
fresh:
	PYTHON=$(PYTHON) tests/install/fresh.sh base
	PYTHON=$(PYTHON) tests/install/fresh.sh train

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site dist .pytest_cache .ruff_cache .mypy_cache .hypothesis build src/*.egg-info

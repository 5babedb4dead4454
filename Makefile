# make replicate   every notebook at budget smoke (BUDGET=fast PAPER=hinton_mnist SEEDS=3 ENGINE=local DEVICE=cpu for more)
# make test        ruff, pytest, nbval on the notebooks, a papermill end to end
# make report      tables, figures, page and README scoreboard from the committed records
# make check       are all records valid, README and tables up to date?
# make bench       the speed table          make lab   JupyterLab on the notebooks
BUDGET ?= smoke
PAPER ?=
SEEDS ?=
ENGINE ?= local
DEVICE ?= cpu
PYTHON ?= python3
BIN := .venv/bin

replicate: .venv/ready
	$(BIN)/kdcore replicate $(PAPER) --budget $(BUDGET) $(if $(SEEDS),--seeds $(SEEDS)) --engine $(ENGINE) --device $(DEVICE)
	$(BIN)/kdcore report

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --nbval-lax tests notebooks

report: .venv/ready
	$(BIN)/kdcore report

check: .venv/ready
	$(BIN)/kdcore check

bench: .venv/ready
	$(BIN)/python -m benchmarks

lab: .venv/ready
	$(BIN)/jupyter lab --notebook-dir=. notebooks

# One install for all targets; made again when a requirement changes.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdcore needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

.PHONY: replicate test report check bench lab

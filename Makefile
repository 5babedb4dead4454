# make replicate   every notebook at budget smoke (BUDGET=fast PAPER=hinton_mnist SEEDS=3 ENGINE=local DEVICE=cpu for more)
# make test        ruff, pytest, nbval on the notebooks, a papermill end to end
# make axe         axe-core from npm, for the tests of the site's accessibility, which are skipped without it
# make portable    every arm at smoke, as a processor without AVX-512 runs it; the report as three kinds of processor make it
# make damage      1,000 random bit flips in weights, checkpoints and records      make kill   20 kills at random moments, then the same record
# make fuzz        1,000 odd command lines, sheets, records and notebook parameters each (EXAMPLES=100 for fewer)
# make report      tables, figures, pages, the README's generated parts, and the site (results/site) from the committed records
# make docs        the generated parts of docs/: equations, the sheet's keys, the diagram of the structure
# make check       are all records valid, README and tables up to date?
# make bench       the speed table          make lab   JupyterLab on the notebooks
# make gpu         checks, numerics, speed, then missing trials by value for time, into a folder (OUT=gpu MINUTES=10)
BUDGET ?= smoke
PAPER ?=
SEEDS ?=
ENGINE ?= local
DEVICE ?= cpu
EXAMPLES ?= 1000
OUT ?= gpu
MINUTES ?= 10
PYTHON ?= python3
BIN := .venv/bin

replicate: .venv/ready
	$(BIN)/kdcore replicate $(PAPER) --budget $(BUDGET) $(if $(SEEDS),--seeds $(SEEDS)) --engine $(ENGINE) --device $(DEVICE)
	$(BIN)/kdcore report

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadscope --nbval-lax tests notebooks

# What no test on this machine's own processor shows: every arm, and every convolution, with the code that oneDNN and PyTorch choose
# where there is AVX2 and no AVX-512.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
portable: .venv/ready
	$(AVX2) $(BIN)/pytest tests/test_convolutions.py
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && for paper in notebooks/*.ipynb; do \
	  $(AVX2) KDCORE_CACHE=$$folder/cache $(BIN)/kdcore run $$(basename $$paper .ipynb) --budget smoke --quiet --results $$folder/results || exit; \
	done
	.ci/same-report

# What the browser tests check accessibility with.
AXE := axe-core@4.14.1
axe:
	npm install --silent --no-save --no-package-lock --prefix .axe $(AXE)

damage: .venv/ready
	KDCORE_FLIPS=250 $(BIN)/pytest tests/test_damage.py

kill: .venv/ready
	KDCORE_KILLS=20 $(BIN)/pytest tests/test_engine.py -k kill_9

fuzz: .venv/ready
	KDCORE_FUZZ=$(EXAMPLES) $(BIN)/pytest tests/test_fuzz.py

report: .venv/ready
	$(BIN)/kdcore report --site

docs: .venv/ready
	$(BIN)/python -m kdcore.papers.sheet_page
	$(BIN)/python -m kdcore.papers.equations
	$(BIN)/python docs/picture.py

check: .venv/ready
	$(BIN)/kdcore check

bench: .venv/ready
	$(BIN)/python -m benchmarks

# On a machine with a GPU and its own PyTorch (nothing is installed); DEVICE=cpu BUDGET=smoke rehearses it.
gpu: DEVICE = cuda
gpu: BUDGET = paper
gpu:
	$(PYTHON) -m benchmarks.gpu --out $(OUT) --minutes $(MINUTES) --device $(DEVICE) --budget $(BUDGET)

lab: .venv/ready
	$(BIN)/jupyter lab --notebook-dir=. notebooks

# One install for all targets; made again when a requirement changes.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdcore needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	touch $@

.PHONY: replicate test portable axe damage kill fuzz report docs check bench gpu lab

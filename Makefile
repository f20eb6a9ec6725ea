# make demo | test | check | test-slow | fuzz | kills | soak | audit | sbom | gpu; needs python3 >= 3.11 and a package index, nothing else
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
AUDIT := build/audit
RUNTIME := build/runtime

.PHONY: demo test test-slow fuzz kills soak check audit sbom gpu wheel clean

demo: $(READY)
	$(BIN)/kdgan-compress demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

# Changed files against every parser; FUZZ_INPUTS=N tries another number than 100,000.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/fuzz

# SIGKILL at every write of every command and at random times; KILL_WRITES=N and KILL_TIMES=N bound them per command.
kills: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/kills

# An hour of training and scoring with flat memory; SOAK_MINUTES=N takes another time.
soak: $(READY)
	SOAK_MINUTES=$(or $(SOAK_MINUTES),60) $(BIN)/python -m pytest -q -s -m slow tests/slow/test_soak.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known vulnerabilities of the locked versions; where no list of them can be reached, the output says so.
audit: $(AUDIT)/ready sbom
	$(AUDIT)/bin/python tests/audit.py $(AUDIT)/bin/pip-audit constraints.txt

# A software bill of materials (CycloneDX) of what `score` needs, in dist/sbom.json.
sbom: $(AUDIT)/ready
	rm -rf $(RUNTIME)
	$(PYTHON) -m venv --without-pip $(RUNTIME)
	$(AUDIT)/bin/python -m pip --python $(RUNTIME)/bin/python install --quiet --disable-pip-version-check --constraint constraints.txt .
	mkdir -p dist
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.json $(RUNTIME)/bin/python

$(AUDIT)/ready: pyproject.toml
	rm -rf $(AUDIT)
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.10' 'cyclonedx-bom>=7.5'
	touch $@

# Runs on the Python's own torch, without .venv: a GPU machine often has a torch that fits its driver.
gpu:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/gpu.py gpu

wheel: $(READY)
	$(BIN)/python -m build --outdir dist

# An environment without the file "ready" was interrupted and is built again from the start.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kdgan-compress needs Python 3.11 or newer; $(PYTHON) is older. Run for example: make PYTHON=python3.12"; exit 1; }
	@test -e $@ || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) || \
	  { echo "Creating a virtual environment needs the venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo gpu

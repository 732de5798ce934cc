# Everything here is idempotent: the second run finds the environment made and takes seconds.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help install demo test test-all lint bench docs clean

help:
	@echo "make demo   install, then run the main job on the embedded model: demo/report.html"
	@echo "make test   install, then run the tests"
	@echo "make test-all  the tests, and those that take minutes"
	@echo "make lint   ruff, and the contract of the floors"
	@echo "make bench  the timings behind bench/RESULTS.md"
	@echo "make docs   build the documentation"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,ray,hub]'
	touch $(STAMP)

demo: install
	$(BIN)/seeing demo --out demo

test: install lint
	$(THREADS) $(BIN)/python -m pytest -n 2 --dist loadscope

test-all: test
	$(THREADS) $(BIN)/python -m pytest -m long

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m bench

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo build dist *.egg-info

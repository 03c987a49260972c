# The one-word commands. `make help` lists them; each installs what it needs.
PYTHON ?= python3
PY := .venv/bin/python
FLOOR := .venv-floor/bin
ARGS ?=

.PHONY: help setup demo test fix check floor bench table doctor clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/ready  ## .venv with the package (editable) and everything the other words need

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install torch torchvision
	$(PY) -m pip install --editable '.[yolo,demo,test]'
	touch $@

demo: setup  ## train, validate and predict on handwritten digits; ARGS='--module ACmix --epochs 20'
	$(PY) -m lska_ops demo $(ARGS)

test: setup  ## the tests; ARGS='-k acmix'
	$(PY) -m pytest -q $(ARGS)

fix: setup  ## format
	$(PY) -m ruff check --fix --quiet .
	$(PY) -m ruff format .

check: setup  ## format, lint, rules of the tree, README's results current
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pytest -q tests/test_layout.py
	$(PY) benchmarks/report.py --check

floor: .venv-floor/ready  ## the tests with the oldest supported versions
	$(FLOOR)/pip install --quiet --no-deps --force-reinstall .
	cd tests && ../$(FLOOR)/pytest -q $(ARGS)

.venv-floor/ready: Makefile
	$(PYTHON) -m venv .venv-floor
	$(FLOOR)/pip install torch==2.3.1 torchvision==0.18.1 ultralytics==8.3.0 'numpy<2' scikit-learn pytest
	touch $@

bench: setup  ## the whole benchmark, on a machine that does nothing else; ARGS=--quick for two minutes of it
	$(PY) benchmarks/bench_lska.py $(ARGS)
	$(PY) benchmarks/bench_acmix.py $(ARGS)

table: setup  ## README's results and the plots, from benchmarks/results
	$(PY) benchmarks/report.py

doctor: setup  ## what runs on this machine, and what would help
	$(PY) -m lska_ops doctor

clean:  ## everything that was made, the environments included
	rm -rf .venv .venv-floor build dist demo *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

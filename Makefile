# make demo: set up an environment in .venv and run the main job on a synthetic scan.
# make test: set up the environment and run the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/package
	$(BIN)/voxelfm demo --out demo

test: .venv/tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/package: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/tests: .venv/package
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf .venv demo build dist *.egg-info

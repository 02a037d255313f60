# `make demo` trains and evaluates on real photographs; `make test` runs the tests and lists the ten slowest.
# Both need Python 3.11 or newer, pip and make only, and can be repeated.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-slow lint clean

demo: $(INSTALLED)
	$(BIN)/python -m difflid_jax.train --config=configs/demo.py --workdir=runs/demo
	$(BIN)/python -m difflid_jax.evaluate --config=configs/demo.py --workdir=runs/demo \
	    --method=identity,dark_channel_prior,difflid

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=10

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(INSTALLED)

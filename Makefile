# Everything here works on a fresh clone with nothing installed but Python and make.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: setup demo test check format bench clean

setup: $(INSTALLED)  ## create .venv and install the pinned set

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev,lm-eval]'
	touch $(INSTALLED)

demo: setup  ## train two adapters, merge them, evaluate all, write the report
	$(BIN)/vlora demo --out demo-out

test: setup  ## the whole test suite, without network or GPU
	$(BIN)/python -m pytest -n 2 -q

check: setup  ## format, lint, docstrings, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info demo-out

# Two commands do everything: `make run` opens the app, `make test` runs the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: venv run test lint bench clean

venv: $(READY)

# torch goes first and alone, so that nothing else decides its build. Where the package index offers pip a CPU build of
# the pinned version, that is taken; elsewhere the default build comes, with CUDA on Linux (several GB, works as well).
# lightly, which two tests compare with, comes alone: what it asks for (torchvision) does not exist for every build. It
# may be missing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("chaffinch needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps lightly
	touch $(READY)

run: $(READY)
	$(BIN)/chaffinch app --port 8501

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/probe.py
	$(BIN)/python benchmarks/datalab.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/robust.py
	$(BIN)/python benchmarks/app.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/output

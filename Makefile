# make demo: install into .venv, train on images, show the result.   make test: install into .venv, run every test.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
BENCH := bench --record --benchmark-columns=min,median,iqr,rounds --benchmark-sort=name
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test test-fast test-oldest lint bench bench-gpu bench-report gpu-check tune compile-report traffic-report release-check clean

demo: $(VENV)/.train
	$(BIN)/fastflow train --data digits --steps 1500 --batch-size 128 --seed 0 --overwrite --out runs/demo

test: $(VENV)/.test
	$(PYTEST)

test-fast: $(VENV)/.test
	$(PYTEST) -m "not slow and not release"

# The declared floor, which GPU machines run: ops and kernels on its PyTorch and Triton, in a venv of their own.
OLDEST := torch==2.11.0 torchvision==0.26.0 triton==3.6.0 numpy==2.3.5
test-oldest: $(VENV)-oldest/.test
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest --numprocesses auto --dist loadfile tests/ops tests/kernels tests/test_*.py

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m pytest $(BENCH); status=$$?; $(BIN)/python -m bench.report && exit $$status

bench-gpu:
	PYTHONPATH=. python3 -m pytest $(BENCH); status=$$?; PYTHONPATH=. python3 -m bench.report && exit $$status

bench-report: $(VENV)/.test
	$(BIN)/python -m bench.report

gpu-check:
	PYTHONPATH=. python3 -m tests.gpu

tune:
	PYTHONPATH=. python3 -m bench.tune --write

compile-report: $(VENV)/.test
	$(BIN)/python -m bench.compiler

traffic-report: $(VENV)/.test
	$(BIN)/python -m bench.traffic

release-check: lint test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m release tests
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.train.kills --count 15
	rm -rf dist && $(PYTHON) -m venv --clear dist/.venv && dist/.venv/bin/python -m pip install --quiet build
	dist/.venv/bin/python -m build --outdir dist
	dist/.venv/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[train]"
	cd dist && .venv/bin/fastflow doctor
	$(MAKE) demo

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist runs .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) '.[train]'
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) '.[train,ode,test,lint]'
	touch $@ $(VENV)/.train

$(VENV)-oldest/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-oldest
	{ grep -vE '^(torch|torchvision|triton|numpy)==' constraints.txt; printf '%s\n' $(OLDEST); } > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-oldest/constraints.txt --editable '.[train,ode,test]'
	touch $@

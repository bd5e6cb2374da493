# Every target sets up its own environment: a machine with Python 3.11, git and make is enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
TESTS  ?= tests
FLOWER ?= .venv-flower

.PHONY: help demo test flower check format lint types docs bench clean
.DEFAULT_GOAL := help

help:   ## what there is to make
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1	/'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/ready-demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/ready-check: $(VENV)/ready-demo
	$(PIP) --group test --group check --group docs
	@touch $@

demo: $(VENV)/ready-demo ## train small models on real data and compare every way of combining them
	$(BIN)/alloykit demo

test: $(VENV)/ready-check ## run all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(TESTS)

$(FLOWER)/ready: pyproject.toml constraints-flower.txt
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/pip install --quiet --disable-pip-version-check --upgrade pip
	$(FLOWER)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-flower.txt \
		--editable . --group flower
	@touch $@

flower: $(FLOWER)/ready ## run the tests of the Flower plug-in, in an environment of its own
	$(FLOWER)/bin/python -m pytest tests/flower

check: format lint types docs test ## all that has to hold before a change lands

format: $(VENV)/ready-check ## check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/ready-check ## check style, docstrings and imports
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/ready-check ## check types, strictly
	$(BIN)/mypy

docs: $(VENV)/ready-check ## build the documentation site, every warning an error
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/ready-check $(FLOWER)/ready ## run the benchmarks; DATA=FOLDER holds mnist/ and fashion-mnist/, SCRATCH=FOLDER has 20 GB of room
	$(BIN)/python benchmarks/batched_members.py
	$(BIN)/python benchmarks/weight_solvers.py
	$(FLOWER)/bin/python benchmarks/aggregate.py
	$(BIN)/python benchmarks/merge_accuracy.py --mergekit-python $(BIN)/python
ifdef SCRATCH
	$(BIN)/python benchmarks/merge_speed.py --folder $(SCRATCH) --mergekit $(BIN)
	$(BIN)/python benchmarks/memory_limit.py --folder $(SCRATCH)
else
	@echo 'benchmarks/merge_speed.py and memory_limit.py need room: make bench SCRATCH=FOLDER'
endif
ifdef DATA
	$(BIN)/python benchmarks/fashion_partitions.py --data $(DATA)/fashion-mnist
	$(BIN)/python benchmarks/multitask_merging.py --data $(DATA)
	$(BIN)/python benchmarks/trajectory_averages.py --data $(DATA)/fashion-mnist
	$(BIN)/python benchmarks/poisoning.py --data $(DATA)/fashion-mnist
	$(BIN)/python benchmarks/federated_fashion.py --data $(DATA)/fashion-mnist
else
	@echo 'the others need data: make bench DATA=FOLDER'
endif

clean:  ## remove what the targets made
	rm -rf $(VENV) $(FLOWER) site dist .cache alloykit-demo

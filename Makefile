# make demo   the whole method on this machine: install, run rounds 0 and 1, print where the report lies
# make test   install and run the fast tests        make test-heavy   the tests with real engines and whole jobs
# make test-all   both in one session, as CI does: fast tests fill the time in which heavy ones wait
# make ui     the web UI on what has been run        make lint         format, lint, types, imports
# make docs   the documentation site, into site/
# make test-rl   installs verl, OpenRLHF and ms-swift, and runs the reward functions in them
# make constraints   writes constraints.txt, the versions that installations take, from what is installed
# make sbom      writes sbom.json, what is installed (CycloneDX), and fails where a licence is not on the list
# make coverage   the fast tests, and how many lines of each module they and their processes run
# make mutation   changes the curation core in small ways and counts what the fast tests notice; about 20 minutes
# make fuzz       damaged input to every surface, for SECONDS seconds and with SEED; prints both, and what it found
# make test-numerics   the tests of numbers as other processors and thread counts compute them
#
# ENGINES=gpu installs the CUDA builds instead of the CPU ones. DT2IT_RECIPE and DT2IT_HOME choose recipe and artifacts,
# TESTERS how many processes share the test files, CELLS which processors and threads `test-numerics` takes (default:1).

PYTHON ?= python3
ENGINES ?= cpu
ROUNDS ?= 0 1
TESTERS ?= 3
SECONDS ?= 60
VENV := .venv
BIN := $(VENV)/bin

export DT2IT_RECIPE ?= configs/recipes/demo.yaml
export DT2IT_HOME ?= $(CURDIR)/data
export DAGSTER_HOME := $(CURDIR)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_OFFLINE ?= 1
# Every stage starts programs of its own. Where Python may not keep what it compiles, as in many container images, each of
# them would compile torch, transformers and vLLM anew: 12 s of processor time a start.
unexport PYTHONDONTWRITEBYTECODE

JOB := dagster job execute -m dt2it_pipeline.definitions -j

.PHONY: demo test test-heavy test-all test-rl test-numerics fuzz coverage mutation constraints sbom ui lint docs clean

# Two notices of others' code that nobody here can act on: of Dagster's command line, and of torch about torch.
demo: export PYTHONWARNINGS ?= ignore:Function,ignore::FutureWarning
demo: $(VENV)/.installed-demo
	@mkdir -p "$(DT2IT_HOME)"
	@echo "$(JOB) construct"
	@$(JOB) construct
	@for round in $(ROUNDS); do \
		echo $(JOB) round --tags "{\"dagster/partition\": \"$$round\"}"; \
		$(JOB) round --tags "{\"dagster/partition\": \"$$round\"}" || exit 1; \
	done
	@dt2it report --brief
	@echo "Report, with figures and the most suspicious pairs: $(DT2IT_HOME)/report.html"

test: $(VENV)/.installed-dev
	pytest -n $(TESTERS) --dist loadfile

# One process more than `make test` has: these tests wait for other programs, and files are taken in the order of
# dt2it_pipeline_tests/conftest.py, the longest first.
test-heavy: $(VENV)/.installed-dev
	pytest -n $$(($(TESTERS) + 1)) --dist loadfile --no-loadscope-reorder -m heavy --durations=12

test-all: $(VENV)/.installed-dev
	pytest -n $$(($(TESTERS) + 1)) --dist loadfile --no-loadscope-reorder -m "not rl" --durations=12

test-rl: $(VENV)/.installed-dev $(VENV)/rl/.installed
	PYTHONPATH="$(CURDIR):$(CURDIR)/$(VENV)/rl" pytest -m rl dt2it_pipeline_tests/serve/test_rl_libraries.py

test-numerics: $(VENV)/.installed-dev
	python -m dt2it_pipeline_tests.support.processor_matrix --testers $(TESTERS) $(CELLS)

fuzz: $(VENV)/.installed-dev
	python -m dt2it_pipeline_tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

coverage: $(VENV)/.installed-dev
	pytest -n $(TESTERS) --dist loadfile --cov --cov-report=term

# A run that computes three times as long as the first one counts as noticed.
mutation: $(VENV)/.installed-dev
	python scripts/mutation.py $(MUTATION)

constraints: $(VENV)/.installed-dev
	python scripts/constraints.py

# The tool lies in an environment of its own, so that it is not listed itself. That what it writes keeps to CycloneDX's
# schema is its own business: to check it takes twenty times as long as to write it.
sbom: $(VENV)/.installed-dev $(VENV)/sbom/.installed
	@env -u PYTHONPATH $(VENV)/sbom/bin/cyclonedx-py environment --no-validate --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file sbom.json $(BIN)/python
	@python scripts/licences.py sbom.json

lint: $(VENV)/.installed-dev
	ruff format --check .
	ruff check .
	mypy
	lint-imports

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

ui: $(VENV)/.installed-demo
	@mkdir -p "$(DT2IT_HOME)"
	dagster dev -m dt2it_pipeline.definitions

clean:
	rm -rf "$(DT2IT_HOME)" $(VENV) .mutation .coverage* sbom.json site

# scripts/install.py says what it fetches from where. Nothing is compiled by it: Python compiles what it imports, and to
# compile the rest would take a third of the installation.
$(VENV)/.installed-demo: pyproject.toml scripts/install.py
	@$(PYTHON) scripts/install.py $(VENV) $(ENGINES) demo
	@touch $@

# All at once, so that `make test` in a fresh clone installs in one go.
$(VENV)/.installed-dev: pyproject.toml scripts/install.py
	@$(PYTHON) scripts/install.py $(VENV) $(ENGINES) demo dev docs
	@touch $(VENV)/.installed-demo $@

$(VENV)/rl/.installed: scripts/install_rl.py | $(VENV)/.installed-dev
	@python scripts/install_rl.py $(VENV)/rl
	@touch $@

$(VENV)/sbom/.installed: | $(VENV)/.installed-dev
	@$(PYTHON) -m venv $(VENV)/sbom
	@$(VENV)/sbom/bin/python -m pip install --quiet "cyclonedx-bom>=7,<8"
	@touch $@

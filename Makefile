# Every target sets itself up: `make demo` and `make test` work in a fresh clone.
#
# PYTHON    the Python (3.11 or newer) for the environment in .venv
# ARGS      more arguments for pytest: make test ARGS='-k oom -x'
# BENCH     arguments for the benchmark: make bench BENCH='--only shell run --rounds 5'
# LAB       arguments for the demonstration of four analyses: make demo-lab LAB='--size demo'
# UPSTREAM  arguments for Snakemake's own tests: make upstream UPSTREAM='-k group'

PYTHON ?= python3
ARGS ?=
BENCH ?=
UPSTREAM ?=

BIN := .venv/bin
STAMP := .venv/.stamp
DEMO_STAMP := .venv/.demo
DEMO := build/demo
comma := ,
LAB_STAMP := .venv/.lab
LAB ?=
UPSTREAM_VENV := build/upstream-venv
UPSTREAM_STAMP := $(UPSTREAM_VENV)/.stamp

# Packages that Snakemake's own tests need; see tests/upstream/README.md.
UPSTREAM_NEEDS := 'pytest<9' pytest-timeout pytest-mock pytest-xdist 'pandas<3' polars snakemake-executor-plugin-cluster-generic \
	snakemake-storage-plugin-fs snakemake-storage-plugin-http snakemake-storage-plugin-s3 boto3 eido peppy pygments

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-crash demo-lab test test-fast soak check bench site schema upstream upstream-setup clean python-is-usable

help: ## show this list
	@echo 'make TARGET'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

# uv takes a third of pip's time; pip does it where uv cannot, because only pip's configuration names the index, say.
define packages
	@$(1)/python -m pip install --quiet uv || true
	$(1)/uv pip install --quiet --native-tls --link-mode copy --compile-bytecode --python $(1)/python $(2) \
		|| { echo 'uv cannot install these packages here: pip does it.'; $(1)/python -m pip install --quiet $(2); }
endef

setup: $(STAMP) ## make the environment in .venv (the other targets do it by themselves)

python-is-usable:
	@command -v $(PYTHON) >/dev/null || { \
		echo 'There is no $(PYTHON). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1). Forge needs Python 3.11 or newer:" \
			'make PYTHON=/path/to/python3.11.'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments: apt-get install python3-venv'; exit 1; }

$(STAMP): pyproject.toml
	@$(MAKE) --no-print-directory python-is-usable
	$(PYTHON) -m venv --clear .venv
	$(call packages,$(BIN),--editable '.[dev$(comma)demo$(comma)bench]')
# pip does not compile editable packages, and each run starts processes that import them.
	$(BIN)/python -m compileall -q snakemake_*_plugin_forge tests
	@touch $(DEMO_STAMP) $(LAB_STAMP) $@

# The demo alone does not install the development tools.
define install
	@$(MAKE) --no-print-directory python-is-usable
	@echo 'Installing Forge with what the demonstration needs into .venv …'
	$(PYTHON) -m venv .venv
	$(call packages,$(BIN),--editable '.[$(1)]')
	@touch $@
endef

$(DEMO_STAMP): pyproject.toml
	$(call install,demo)

demo: $(DEMO_STAMP) ## call variants from real reads, every job contained; about 15 s
	@rm -rf $(DEMO)
	@mkdir -p $(DEMO)
	$(BIN)/snakemake --snakefile workflows/variants/Snakefile --directory $(DEMO) --executor forge -j2 --quiet rules
	$(BIN)/python workflows/variants/check.py $(DEMO)/results
	@echo
	$(BIN)/snakemake-forge jobs --directory $(DEMO)
	@echo
	@echo 'table      $(DEMO)/results/summary.tsv'
	@echo 'picture    $(DEMO)/results/coverage.png'
	@echo 'variants   $(DEMO)/results/joint.vcf.gz'
	@echo "logs       $(DEMO)/logs (the rules' own log files)"
	@echo "records    $$(echo $(DEMO)/.snakemake/forge/runs/*) (one directory a job)"

demo-crash: $(DEMO_STAMP) ## kill Snakemake in the middle of the demo, and resume it
	@rm -rf $(DEMO)
	@mkdir -p $(DEMO)
	$(BIN)/python workflows/variants/crash.py $(DEMO) $(BIN)
	$(BIN)/python workflows/variants/check.py $(DEMO)/results
	@echo
	$(BIN)/snakemake-forge jobs --directory $(DEMO)

$(LAB_STAMP): pyproject.toml
	$(call install,demo$(comma)provenance)

demo-lab: $(LAB_STAMP) ## four analyses and a hostile one beside a database; minutes, more the first time (it builds venvs)
	$(BIN)/python workflows/lab/lab.py build/lab $(BIN) $(LAB)

# One worker of three waits for the Slurm cluster for ten minutes.
test: $(STAMP) ## all tests, also in a guest with cgroup v2, on a Slurm cluster, and Snakemake's own (root: installs packages for them)
	$(BIN)/python -m pytest -n 3 $(ARGS)

test-fast: $(STAMP) ## all tests but the slow ones and those that need another host (guest, cluster)
	$(BIN)/python -m pytest -n 2 -m 'not host and not busy and not slow' $(ARGS)

soak: $(STAMP) ## crashes at random times by the hundred, and every case of containment in the guest; hours
	$(BIN)/python -m pytest -m soak $(ARGS)

check: $(STAMP) ## lint, types, the import contract, links in the documentation
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

site: $(STAMP) ## build the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

schema: $(STAMP) ## write the JSON schema of forge.yaml into the documentation
	$(BIN)/snakemake-forge runtimes schema > docs/reference/forge.schema.json

bench: $(STAMP) ## compare with Snakemake's local executor and cluster-generic; half an hour or more
	$(BIN)/python -m bench $(BENCH)

$(UPSTREAM_STAMP): pyproject.toml
	@$(MAKE) --no-print-directory python-is-usable
	@mkdir -p build
	$(PYTHON) -m venv --clear $(UPSTREAM_VENV)
	$(call packages,$(UPSTREAM_VENV)/bin,--editable . $(UPSTREAM_NEEDS))
	@touch $@

upstream-setup: $(UPSTREAM_STAMP)

upstream: $(UPSTREAM_STAMP) ## Snakemake's own feature tests with local and with Forge; rewrites tests/upstream/local.json
	$(UPSTREAM_VENV)/bin/python -m tests.upstream --afresh $(UPSTREAM)

clean: ## remove .venv, build and caches
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything a person or a build machine does with this project. Needs python3 (3.11 or later) with its venv module,
# make and git. `make PYTHON=python3.12 demo` chooses another interpreter, `VENV=` another place for the packages.

VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
RUN := $(BIN)/python -m

export VENV

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-dev demo test faults check conformance mutants bench bench-check format readme rules prometheus lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

setup: ## Make .venv with the `pipeline` command and what the demo needs
	@sh .ci/venv demo

setup-dev: ## The same, with what the tests need
	@sh .ci/venv dev

demo: setup ## Run a broker, stand-ins and a worker; send 20,000 requests; account for each
	@$(BIN)/pipeline demo $(ARGS)

test: setup-dev ## Run the tests; ARGS="-k segments" selects some
	@$(RUN) pytest $(ARGS)

faults: setup-dev ## The tests of crashes and outages at full size; ARGS="-k kills" selects some
	@FAULTS=full $(RUN) pytest tests/faults $(ARGS)

# One part of `make check`: a name and a command. Says how long it took, or that it failed.
define part
	@printf '== %s\n' '$(1)'; start=$$(date +%s); \
	if $(2); then printf '== %s: ok, %s s\n' '$(1)' $$(( $$(date +%s) - start )); \
	else printf '== %s: FAILED, %s s\n' '$(1)' $$(( $$(date +%s) - start )); exit 1; fi
endef

# No Python package carries promtool, so this is a part of `make check` and not one of the tests.
define promtool
	{ command -v promtool >/dev/null || { echo "promtool is needed; on Debian and Ubuntu: apt-get install prometheus" >&2; false; }; } && \
	promtool check rules --lint=all $(RULES).rules.yml && promtool test rules $(RULES).test.yml
endef
RULES := k8s/rules/decision-pipeline

check: setup-dev ## All that must hold before a merge: format, lint, types, layers, README, alerts, dashboard, tests
	$(call part,format,$(BIN)/ruff format --check)
	$(call part,lint,$(BIN)/ruff check)
	$(call part,types,$(BIN)/mypy)
	$(call part,layers,$(BIN)/lint-imports --no-cache)
	$(call part,readme,$(RUN) tests.readme --check)
	$(call part,rules,$(promtool))
	$(call part,prometheus,$(RUN) tests.k8s.scrape)
	$(call part,tests,$(RUN) pytest $(ARGS))

conformance: setup-dev ## Compare decisions with the official SDK; N=1000000 SEED=7 JOBS=2; KEEP=dir keeps a case that differs
	@$(RUN) tests.conformance $(if $(N),--number $(N)) $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS)) \
		$(if $(KEEP),--keep "$(KEEP)") $(ARGS)

mutants: setup-dev ## Put faults into the evaluator, see which its tests notice; N=500 SEED=1, STATE=file goes on with a run
	@$(RUN) tests.mutation $(if $(N),--number $(N)) $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS)) \
		$(if $(STATE),--state "$(STATE)") $(ARGS)

bench: setup-dev ## Cost of a request beside a floor and a naive worker; QUICK=1 takes three minutes
	@$(RUN) tests.benchmarks $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

bench-check: setup-dev ## The quick benchmarks; fails if a ratio does not keep its bound (tests/benchmarks/bounds.json)
	@$(RUN) tests.benchmarks --quick --check $(ARGS)

format: setup-dev ## Format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

readme: setup-dev ## Write the tables of README.md anew from settings, metrics, limits and alerts
	@$(RUN) tests.readme

rules: setup-dev ## Test the alerts (needs promtool) and write the PrometheusRule made from them
	@$(promtool)
	@$(RUN) tests.k8s.prometheus_rule

prometheus: setup-dev ## Ask a real Prometheus, scraping a worker under traffic, for all alerts and panels
	@$(RUN) tests.k8s.scrape

# The largest lock is resolved first and constrains the others, so that the three never disagree on a version.
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --group build

lock: ## Resolve the three requirements*.lock anew from pyproject.toml (needs uv); ARGS=--upgrade takes newer ones
	@command -v uv >/dev/null || { echo "make lock needs uv on the PATH: $(RUN) pip install uv" >&2; exit 1; }
	$(LOCK) --annotation-style line --extra demo --extra dev $(ARGS) -o requirements-dev.lock
	$(LOCK) --no-annotate --extra demo -c requirements-dev.lock -o requirements-demo.lock
	$(LOCK) --no-annotate -c requirements-dev.lock -o requirements.lock

clean: ## Remove .venv, caches and built files
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +

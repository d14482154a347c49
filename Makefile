# Every goal that runs something first makes .venv, if it is missing or stale.
# Nothing is needed but Python 3.10 to 3.13, pip and make. `make PYTHON=python3.12 test` picks a Python.

IN_RANGE := (3, 10) <= sys.version_info[:2] <= (3, 13)
SUPPORTED := import sys; sys.exit(not $(IN_RANGE))
USABLE := import pip, sys; sys.exit(sys.prefix == sys.base_prefix or not $(IN_RANGE))
PYTHON ?= $(shell for candidate in python3 python3.11 python3.12 python3.13 python3.10; do \
	$$candidate -c '$(SUPPORTED)' 2>/dev/null && echo $$candidate && break; done)

PIP := .venv/bin/python -m pip --require-virtualenv --disable-pip-version-check
PYTEST := .venv/bin/python -m pytest
INSTALLED := .venv/.installed
UNFINISHED := .venv/.unfinished

.DEFAULT_GOAL := help
.PHONY: help demo test bench docs lint format types clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## Watch a DQN agent's neurons go dormant, and recycle them (under 3 minutes)
	.venv/bin/python -m agents.demo

test: $(INSTALLED)  ## Run the tests and the examples in the docstrings
	$(PYTEST) --numprocesses 2 --dist loadfile --doctest-modules tests dynamo_probe

bench: $(INSTALLED)  ## Measure what watching costs
	$(PYTEST) benchmarks/overhead

docs: $(INSTALLED)  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet --site-dir site
	@echo "open site/index.html, or with its search: .venv/bin/python -m http.server --directory site"

lint: $(INSTALLED)  ## Check style and formatting
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .

format: $(INSTALLED)  ## Put the code in its format
	.venv/bin/python -m ruff check --fix-only .
	.venv/bin/python -m ruff format .

types: $(INSTALLED)  ## Check the types
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/python -m pyright

clean:  ## Remove .venv and everything that was made
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Also stale: an environment whose Python has gone, or whose checkout has moved (it points at the old place).
ifneq ($(shell .venv/bin/python -c 'print(open("$(INSTALLED)").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

# An install that did not finish, or that was made elsewhere, is begun anew. torch goes first: it brings setuptools,
# pinned, which then builds this package without a download of its own. MinAtar and ALE are under the GPL, so no extra
# of ours brings them along; what MinAtar depends on serves its windows.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ -e $(UNFINISHED) ] || { [ -e $@ ] && [ "$$(cat $@)" != '$(CURDIR)' ]; } || \
		! .venv/bin/python -c '$(USABLE)' 2>/dev/null; then \
		$(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || { \
			echo "dynamo-probe needs Python 3.10 to 3.13; name one with make PYTHON=python3.12"; exit 1; }; \
		mkdir -p .venv && touch $(UNFINISHED) && \
		find .venv -mindepth 1 -not -path $(UNFINISHED) -delete && \
		echo "making .venv with $$($(PYTHON) --version)" && \
		{ $(PYTHON) -m venv .venv || { \
			echo "this Python makes no pip of its own; taking the one that is here" && \
			$(PYTHON) -m venv --without-pip .venv && \
			$(PYTHON) -m pip --python .venv/bin/python install --quiet pip; }; }; \
	fi
	@rm -f $@ && touch $(UNFINISHED)
	@echo "installing what constraints.txt names into .venv (a few minutes where nothing is cached)"
	@$(PIP) install --quiet --constraint constraints.txt torch setuptools
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@$(PIP) install --quiet --constraint constraints.txt --no-deps minatar ale-py
	@rm $(UNFINISHED) && printf '%s\n' '$(CURDIR)' > $@

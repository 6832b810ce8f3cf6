# Thin: set up .venv from the pins, then one command.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: study test lint report bench

study: .venv/ready
	@snakemake --cores all
	@echo "report: reports/emoji/report.html"

test: .venv/ready-test
	@python -m pytest -n 2 -m "not slow and not gpu"

lint: .venv/ready-test
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

report: .venv/ready
	@fitspace report params/emoji.yaml

bench: .venv/ready
	@python benchmarks/startup.py

# Torch comes first and pinned: a range would bring the newest CUDA build.
.venv/ready: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the pinned packages (about 2 minutes)"
	@python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/ready-test: .venv/ready
	@python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

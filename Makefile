# Thin: set up .venv from the pins, then one command.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: study test test-machines test-slow test-slurm lint report docs bench

study: .venv/ready
	@snakemake --cores all
	@echo "report: reports/emoji/report.html"

FAST := python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not slurm"

test: .venv/ready-test
	@$(FAST)

# The same as other machines compute: with OpenBLAS' oldest kernels, then with PyTorch's and
# oneDNN's, which any x86 CPU has; others take no notice.
test-machines: .venv/ready-test
	@OPENBLAS_CORETYPE=Prescott $(FAST)
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(FAST)

# What takes longer: whole runs made again, a change by dvc repro.
test-slow: .venv/ready-test
	@python -m pytest -n 2 --dist loadfile -m "slow and not gpu and not slurm"

# A real SLURM, started on loopback as root; a machine without one skips, unless FITSPACE_SLURM
# says that it is required.
test-slurm: .venv/ready-test
	@python -m pytest -m slurm tests/system/test_slurm.py

lint: .venv/ready-test
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint

report: .venv/ready
	@fitspace report params/emoji.yaml

# The site of the documentation; its pages open from disk.
docs: .venv/ready-test
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "site: build/docs/index.html"

# Half an hour on two cores; benchmarks/gpu.py needs a GPU and is not among them.
bench: .venv/ready
	@for part in startup step frechet sampling study; do \
	  printf '\n## %s\n\n' $$part; python benchmarks/$$part.py || exit 1; done

# Torch comes first, at its pin: pip takes a CPU build where one is at hand (--find-links, an
# index of the machine), else the ordinary build, which brings CUDA packages of several GB.
# One make at a time: who waited finds it done.
ALONE = set -e; exec 9> .install.lock; if command -v flock > /dev/null; then flock 9; fi
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.venv/ready: constraints.txt pyproject.toml
	@$(ALONE); \
	if [ $@ -nt constraints.txt ] && [ $@ -nt pyproject.toml ]; then exit 0; fi; \
	command -v $(PYTHON) > /dev/null || { echo "Python 3.11 is not here: install $(PYTHON), or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv; \
	echo "installing the pinned packages (about 2 minutes)"; \
	$(PIP) torch; \
	$(PIP) -e .; \
	touch $@

.venv/ready-test: .venv/ready
	@$(ALONE); \
	if [ $@ -nt .venv/ready ]; then exit 0; fi; \
	$(PIP) -e ".[test]"; \
	touch $@

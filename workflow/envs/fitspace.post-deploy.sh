#!/usr/bin/env bash
# Run by Snakemake in the new environment, from the project's folder.
set -euo pipefail
python -m pip install -c constraints.txt torch
python -m pip install -c constraints.txt -e .

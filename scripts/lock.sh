#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that pyproject.toml allows, from an environment made for this alone.
# Made with the oldest Python that is supported, so that the versions exist for all of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade setuptools
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[dev]'
{
  echo "# The versions that everything is tested with, on Python 3.11, 3.12 and 3.13. Written by scripts/lock.sh."
  "$work/venv/bin/python" -m pip freeze --all --exclude pip --exclude-editable | grep -v '^#' | LC_ALL=C sort -f
} >"$work/constraints.txt"
cp "$work/constraints.txt" constraints.txt

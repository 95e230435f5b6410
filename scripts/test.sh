#!/usr/bin/env bash
# Sets up .venv and runs every check and test. Needs nothing but Python 3.11, 3.12 or 3.13 with venv.
# Arguments go to pytest and choose the tests: ./scripts/test.sh tests/test_config.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
set_up dev

export HYPOTHESIS_PROFILE="${HYPOTHESIS_PROFILE:-ci}"
if [ $# -gt 0 ]; then
  exec "$python" -m pytest "$@" </dev/null
fi
scripts/check
"$python" -m pytest -q -m "not slow" </dev/null
"$python" -m pytest -q -m "slow and not exhaustive" </dev/null

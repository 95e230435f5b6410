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
# Two processes side by side, each test file in one of them; one thread in each, or they wait for one another.
export OMP_NUM_THREADS=1
"$python" -m pytest -q -n 2 --dist loadfile -m "not slow" </dev/null
"$python" -m pytest -q -n 2 --dist loadfile -m "slow and not exhaustive" </dev/null

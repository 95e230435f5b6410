# Sourced by the other scripts, after `cd` to the repository: makes .venv where it is missing or out of date.
#
#   set_up run    what the platform needs to run
#   set_up dev    that, and what the tests and checks need
#
# Leaves $python, the environment's interpreter. A stamp in .venv says what was installed, so that a second call costs
# nothing. `PYTHON=/path/to/python` chooses the interpreter of a new environment.

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        >/dev/null 2>&1 </dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  echo "rlplatform needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian and Ubuntu: apt install python3-venv);" \
    "none was found on the PATH. PYTHON=/path/to/python names one." >&2
  return 1
}

install() { # requirement...
  "$python" -m pip install --quiet --disable-pip-version-check --no-input --constraint constraints.txt "$@" </dev/null
}

set_up() { # run | dev
  local here base wanted requirement
  here=$(pwd -P)
  python="$here/.venv/bin/python"
  # An environment knows its own path: one that was moved, or whose Python is gone, is made anew.
  if ! grep -qsF "$here/.venv" .venv/bin/activate || ! "$python" -c 'import pip' >/dev/null 2>&1 </dev/null; then
    base=$(find_python) || return 1
    echo "Making .venv with $("$base" --version)"
    rm -rf .venv
    "$base" -m venv .venv
  fi
  wanted=$("$python" -c 'import hashlib, sys
texts = [open(name, "rb").read() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"\0".join([*texts, sys.version.encode()])).hexdigest())') || return 1
  if [ "$(cat .venv/installed-dev 2>/dev/null)" = "$wanted" ]; then return; fi
  if [ "$1" = run ] && [ "$(cat .venv/installed-run 2>/dev/null)" = "$wanted" ]; then return; fi
  requirement=.
  if [ "$1" = dev ]; then requirement='.[dev]'; fi
  echo "Installing the packages into .venv (once; TensorFlow is large)"
  rm -f .venv/installed-run .venv/installed-dev
  install setuptools || return 1 # The build backend, from the same lock as all else.
  install --no-build-isolation --editable "$requirement" || return 1
  printf '%s\n' "$wanted" >".venv/installed-$1"
}

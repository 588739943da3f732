"""The Ascend host's tools: npu-smi lists the chips, ATC makes OM files, ais_bench runs them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from cfdist.errors import UserError

_LAST_LINES = 5  # of the output of a tool that fails; they hold the reason


def call_tool(
    what: str,
    command: Sequence[str],
    advice: str,
    folder: Path | None = None,
    limit_s: float | None = None,
) -> str:
    """Run a tool to its end.

    Args:
        what: The tool's name, which begins an error message.
        command: The program and its arguments.
        advice: What the person can do about a failure, which ends an error message.
        folder: The current folder of the tool; `None`: this process's.
        limit_s: Seconds after which the tool is ended; `None`: no limit.

    Returns:
        What the tool printed, errors included.

    Raises:
        UserError: the tool cannot be run, does not end in time or fails; its last lines are in the
            message.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{what}: no answer within {limit_s} s; {advice}") from None
    except OSError as error:
        raise UserError(f"{what}: {command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        said = " | ".join(lines[-_LAST_LINES:]) or "it printed nothing"
        raise UserError(f"{what} failed with exit code {done.returncode}: {said}; {advice}")
    return done.stdout

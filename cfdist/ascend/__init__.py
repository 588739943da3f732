"""The Ascend host's tools: npu-smi lists the chips, ATC makes OM files, ais_bench runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


def run_ais_bench(
    model: Path, bins: Path, folder: Path, batch: int, devices: Sequence[int] | None
) -> None:
    """Infer all input tensors of a folder, and wait for the end.

    Args:
        model: The OM.
        bins: The folder of the input tensors.
        folder: The folder of the raw outputs, which the tool makes.
        batch: The OM's batch.
        devices: Chips; each gets an equal contiguous share. `None`: the tool's own choice.

    Raises:
        UserError: the call failed; the output folder is then removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    call = [sys.executable, "-m", "ais_bench", "--model", str(model), "--input", str(bins)]
    call += ["--output", str(folder.parent), "--output_dirname", folder.name]
    call += ["--batchsize", str(batch)]
    if devices is not None:
        call += ["--device", ",".join(map(str, devices))]
    advice = "see whether the OM, model.batch and the bins fit together, or leave infer.cli out"
    try:
        call_tool("python -m ais_bench", call, advice)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise

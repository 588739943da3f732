"""The command line `python -m ais_bench`, as the guide calls it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cfdist.errors import UserError

_LAST_LINES = 3  # of a failed call's output that go into the message


def command_line(
    model: Path, bins: Path, folder: Path, batch: int, devices: Sequence[int] | None
) -> list[str]:
    """The call that infers all input tensors of `bins` into `folder`, for `subprocess`.

    Args:
        model: The OM.
        bins: The input folder.
        folder: The output folder, which the call makes; its parent must exist.
        batch: The OM's batch.
        devices: Chips; each gets an equal contiguous share. `None`: the tool's own choice.
    """
    call = [sys.executable, "-m", "ais_bench", "--model", str(model), "--input", str(bins)]
    call += ["--output", str(folder.parent), "--output_dirname", folder.name]
    call += ["--batchsize", str(batch)]
    if devices is not None:
        call += ["--device", ",".join(map(str, devices))]
    return call


def run_ais_bench(
    model: Path, bins: Path, folder: Path, batch: int, devices: Sequence[int] | None
) -> None:
    """Run `python -m ais_bench` and wait; the parameters are those of `command_line`.

    Raises:
        UserError: the call failed; the output folder is then removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command_line(model, bins, folder, batch, devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise UserError(
            f"python -m ais_bench failed with exit code {done.returncode}: "
            f"{' | '.join(lines[-_LAST_LINES:]) or 'it printed nothing'}; see whether the OM, "
            "model.batch and the bins fit together, or leave infer.cli out"
        )

"""The command line `python -m ais_bench`, as the guide calls it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cfdist.ascend import call_tool
from cfdist.errors import UserError


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

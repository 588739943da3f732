"""`python -m ais_bench`, for `infer.cli=true`: its input, its raw outputs and its summary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfdist.ascend import run_ais_bench
from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.workflow.files import FORMS, Failures, InputFiles, find_outputs, match_outputs


def check_for_tool(spec: ModelSpec, files: InputFiles, chip: int, key: str) -> None:
    """Refuse a folder that the tool would misread; a chip is asked what the OM takes.

    Raises:
        UserError: the folder holds other files, the OM takes something else than the input tensors
            hold, or the chip cannot be opened.
    """
    names = {Path(item.path).name for item in files.items}
    if others := sorted(path.name for path in files.folder.iterdir() if path.name not in names):
        raise UserError(
            f"{key}={files.folder}: ais_bench would take every file for a picture, and {others[0]} "
            "is none; remove it, or leave infer.cli out"
        )
    # The tool packs files by their bytes: four u8 files have the bytes of one f32 picture, and it
    # would infer them without a complaint.
    try:
        om = BackendModel("om", spec).load(DeviceSettings(index=chip))
    except RuntimeError as error:
        raise UserError(
            f"{error}; see npu-smi info, or choose another chip by devices=[N]"
        ) from None
    om.close()
    taken, held = om.contract, files.contract
    if (held.dtype, held.layout) != (taken.dtype, taken.layout):
        raise UserError(
            f"model {spec.path}: takes {taken.dtype} {taken.layout}, the files hold {held.dtype} "
            f"{held.layout}; make them with job=preprocess preprocess.input={FORMS[taken.dtype]}"
        )


def infer_with_tool(
    spec: ModelSpec, files: InputFiles, folder: Path, devices: Sequence[int] | None
) -> tuple[dict[str, Any] | None, Failures]:
    """Let the tool infer what `check_for_tool` has passed, and make the folder of the raw outputs.

    The tool chooses the chips itself if `devices` is `None`.

    Returns:
        The tool's summary, `None` if it left none, and (stem, reason) of the input tensors without
        usable raw output.

    Raises:
        UserError: the tool failed, or left nothing that can be used.
    """
    run_ais_bench(spec.path, files.folder, folder, spec.batch, devices)
    found = find_outputs(folder, "infer.output") if folder.is_dir() else {}
    source = f"python -m ais_bench left {folder}"
    remedy = "see whether the OM's input is what the files hold"
    _, failures = match_outputs(found, files.items, spec, source, remedy)
    path = summary_path(folder)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None, failures


def summary_path(folder: Path) -> Path:
    """Where `python -m ais_bench` leaves the summary of a folder of raw outputs."""
    return folder.with_name(f"{folder.name}_summary.json")


def summary(device_times_ms: Iterable[Sequence[float]], batch: int) -> dict[str, Any]:
    """The content of `<name>_summary.json`, as `python -m ais_bench` leaves it.

    Args:
        device_times_ms: Milliseconds of each batch, for each device; at least one batch in all.
        batch: Pictures a batch.

    Returns:
        `NPU_compute_time` in milliseconds over all devices, and `throughput`, pictures a second:
        1000 * batch / mean, summed over the devices.
    """
    devices = [np.asarray(times, float) for times in device_times_ms if len(times)]
    times = np.concatenate(devices)
    return {
        "NPU_compute_time": {
            **{name: float(getattr(np, name)(times)) for name in ("min", "max", "mean", "median")},
            "percentile(99%)": float(np.percentile(times, 99)),
        },
        "throughput": float(sum(1000 * batch / times.mean() for times in devices)),
    }

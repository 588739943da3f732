"""`python -m ais_bench`, for `infer.cli=true`: its input, its raw outputs and its summary."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfdist.ascend import ToolCall, chip_summaries, run_ais_bench
from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.errors import UserError
from cfdist.files import write_text
from cfdist.model import ModelSpec
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import (
    FORMS,
    Failures,
    InputFiles,
    find_outputs,
    match_outputs,
    output_names,
)

_PERCENTILE = "percentile(99%)"


def check_for_tool(spec: ModelSpec, files: InputFiles, chip: int, key: str) -> list[str]:
    """Refuse a folder that the tool would misread; a chip is asked what the OM takes.

    Returns:
        The options that the tool needs for this OM.

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
    return list(getattr(om, "cli_options", []))


def infer_with_tool(
    spec: ModelSpec, files: InputFiles, folder: Path, call: ToolCall
) -> tuple[dict[str, Any] | None, Failures]:
    """Let the tool infer what `check_for_tool` has passed, and make the folder of the raw outputs.

    Of several chips the tool leaves a summary each; they are put together into one beside the
    folder.

    Returns:
        The tool's summary, `None` if it left none, and (stem, reason) of the input tensors without
        usable raw output.

    Raises:
        UserError: the tool failed, or left nothing that can be used.
        StoppedError: it hangs.
    """
    run_ais_bench(spec.path, files.folder, folder, spec.batch, call)
    found = find_outputs(folder, "infer.output") if folder.is_dir() else {}
    source = f"python -m ais_bench left {folder}"
    remedy = "see whether the OM's input is what the files hold"
    _, failures = match_outputs(found, files.items, spec, source, remedy)
    path = summary_path(folder)
    if not path.is_file() and (several := _read_chip_summaries(folder, call.devices)):
        write_text(path, json.dumps(joined(several)) + "\n")
    return _read_summary(path), failures


def summary_path(folder: Path) -> Path:
    """Where `python -m ais_bench` leaves the summary of a folder of raw outputs."""
    return folder.with_name(f"{folder.name}_summary.json")


def _read_summary(path: Path) -> dict[str, Any] | None:
    """A summary; `None` if there is none, or what is there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    compute = content.get("NPU_compute_time") if isinstance(content, dict) else None
    return content if isinstance(compute, dict) and "mean" in compute else None


def _read_chip_summaries(folder: Path, devices: Sequence[int] | None) -> list[dict[str, Any]]:
    """The summaries of several chips; none if one is missing."""
    read = [_read_summary(path) for path in chip_summaries(folder, devices or ())]
    whole = [one for one in read if one is not None]
    return whole if len(whole) == len(read) else []


def joined(chips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summaries of several chips as one of all.

    Args:
        chips: What the tool left for each.

    Returns:
        Times over the batches of all chips, as far as the tool lists each batch's time; else the
        mean over all batches, the least and the largest. `throughput` is the sum.
    """
    lists = [chip.get("npu_compute_time_list") for chip in chips]
    times = [time for one in lists for time in one or ()]
    if all(lists) and all(isinstance(time, int | float) for time in times):
        compute = statistics(times)
    else:
        parts = [chip["NPU_compute_time"] for chip in chips]
        counts = [int(part.get("count", 1)) for part in parts]
        total = sum(count * part["mean"] for count, part in zip(counts, parts, strict=True))
        compute = {"mean": total / max(1, sum(counts)), "count": sum(counts)}
        for name, choose in (("min", min), ("max", max)):
            if all(name in part for part in parts):
                compute[name] = choose(part[name] for part in parts)
    return {
        "NPU_compute_time": compute,
        "throughput": float(sum(chip.get("throughput", 0.0) for chip in chips)),
        "devices": list(chips),
    }


def statistics(times_ms: Sequence[float]) -> dict[str, float]:
    """Times as the tool's summary has them; zeros for none, as the tool writes them."""
    times = np.asarray(times_ms, float)
    if not len(times):
        return dict.fromkeys(("min", "max", "mean", "median", _PERCENTILE, "count"), 0)
    return {
        **{name: float(getattr(np, name)(times)) for name in ("min", "max", "mean", "median")},
        _PERCENTILE: float(np.percentile(times, 99)),
        "count": len(times),
    }


def summary(
    device_times_ms: Sequence[Sequence[float]],
    batch: int,
    items: Sequence[WorkItem] = (),
    folder: Path = Path(),
) -> dict[str, Any]:
    """The content of `<name>_summary.json`, as `python -m ais_bench` leaves it.

    Args:
        device_times_ms: Milliseconds of each batch, for each device; at least one batch in all.
        batch: Pictures a batch.
        items: The input tensors that have a raw output.
        folder: Where the raw outputs are.

    Returns:
        `NPU_compute_time` in milliseconds over all devices, and `throughput`, pictures a second:
        1000 * batch / mean, summed over the devices. The copies to and from the chip are not timed
        apart: their counts are 0.
    """
    devices = [np.asarray(times, float) for times in device_times_ms if len(times)]
    times = np.concatenate(devices)
    files = {
        str(number): {
            "infiles": [item.path],
            "outfiles": [str(folder / name) for name in output_names(item.id)],
        }
        for number, item in enumerate(items)
    }
    return {
        "filesinfo": files,
        "args": sys.argv,
        "NPU_compute_time": statistics(times.tolist()),
        "H2D_latency": statistics([]),
        "D2H_latency": statistics([]),
        "npu_compute_time_list": times.tolist(),
        "throughput": float(sum(1000 * batch / times.mean() for times in devices)),
        "pid": os.getpid(),
    }

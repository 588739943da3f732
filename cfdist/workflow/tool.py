"""`infer.cli=true`: `python -m ais_bench` infers, and its files are checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfdist.ascend import run_ais_bench
from cfdist.backends.base import DeviceSettings
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.workflow.files import Failures, input_contract
from cfdist.workflow.matching import InputFiles, find_outputs, output_problem
from cfdist.workflow.records import summary_path


def check_for_tool(spec: ModelSpec, files: InputFiles, device: int, key: str) -> None:
    """Refuse a folder that the tool would misread.

    Args:
        spec: The OM.
        files: The input tensors.
        device: The chip that is asked what the OM takes.
        key: The configuration key that named the folder, for messages.

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
    from cfdist.backends.om import OmBackend

    try:
        om = OmBackend(spec, DeviceSettings(index=device))
    except RuntimeError as error:
        raise UserError(
            f"{error}; see npu-smi info, or choose another chip by devices=[N]"
        ) from None
    contract = om.contract
    om.close()
    held = input_contract(spec, files.form)
    if (held.dtype, held.layout) != (contract.dtype, contract.layout):
        form = "f32" if contract.dtype == "float32" else "u8"
        raise UserError(
            f"model {spec.path}: takes {contract.dtype} {contract.layout}, the files hold "
            f"{held.dtype} {held.layout}; make them with job=preprocess preprocess.input={form}"
        )


def infer_with_tool(
    spec: ModelSpec, files: InputFiles, folder: Path, devices: Sequence[int] | None
) -> tuple[dict[str, Any] | None, Failures]:
    """Let the tool infer.

    Args:
        spec: The OM.
        files: The input tensors, checked by `check_for_tool`.
        folder: The folder of the raw outputs, which the tool makes.
        devices: The chips; `None`: the tool's own choice.

    Returns:
        The tool's summary, `None` if it left none, and (stem, reason) of the input tensors without
        usable raw output.

    Raises:
        UserError: the tool failed.
    """
    run_ais_bench(spec.path, files.folder, folder, spec.batch, devices)
    found = find_outputs(folder, "infer.output") if folder.is_dir() else {}
    problems = {
        item.id: output_problem(found.get(item.id, {}), item.id, spec) for item in files.items
    }
    failures = [(stem, problem) for stem, problem in problems.items() if problem is not None]
    if len(failures) == len(files.items):
        raise UserError(
            f"python -m ais_bench left no usable files in {folder}; the first: {failures[0][1]}; "
            "see whether the OM's input is what the files hold"
        )
    path = summary_path(folder)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None, failures

"""`job=convert`: one OM for each batch size, from an ONNX through Ascend's ATC."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import onnx

from cfdist import execution
from cfdist.ascend import atc
from cfdist.ascend.npu_smi import soc_version
from cfdist.backends.onnx_file import load_onnx, takes_u8
from cfdist.config import Config
from cfdist.errors import UserError
from cfdist.files import atomic_write
from cfdist.model import ModelSpec
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds


def main(config: Config, output: Path, started: float) -> int:
    """Convert, show; returns the exit code."""
    spec = execution.model_spec(config.model)
    folder = Path(config.convert.output).expanduser()
    model = atc_model(config, spec, folder)
    ready = time.time()
    made = atc.convert(model, folder, config.convert.batches, dry_run=config.convert.dry_run)
    ended = time.time()

    if config.convert.dry_run:
        _print_what_is_needed(spec, model, folder)
    for result in made:
        if config.convert.dry_run:
            screen.console.print(result.command, markup=False)
        else:
            state = "made" if result.made else "up to date"
            screen.console.print(f"{result.om}: {state}", markup=False)
    results = Results(
        job="convert",
        ap={},
        total=0,
        done=0,
        failures=[],
        seconds=phase_seconds(started, ready, ended),
        model={"path": str(spec.path), "sha256": spec.sha256},
        config=config.model_dump(),
        extra={"convert": [asdict(result) | {"om": str(result.om)} for result in made]},
    )
    results.write(output)
    return results.exit_code


def _print_what_is_needed(spec: ModelSpec, model: atc.AtcModel, folder: Path) -> None:
    """Comments on the files that the printed commands name and that a dry run does not write."""
    if model.onnx != spec.path:
        screen.console.print(
            f"# {model.onnx}: {spec.path} with its input declared as (batch, 3, {spec.height}, "
            f"{spec.width})",
            markup=False,
        )
    if model.aipp is not None:
        screen.console.print(f"# {model.aipp_path(folder)}:", markup=False)
        for line in model.aipp.splitlines():
            screen.console.print(f"#   {line}", markup=False)


def atc_model(config: Config, spec: ModelSpec, folder: Path) -> atc.AtcModel:
    """What ATC is given: the checked ONNX, the chip, and the AIPP text if asked for.

    Raises:
        UserError: not an ONNX of head maps with float input, or no chip known.
    """
    network = load_onnx(spec)
    if takes_u8(network):
        raise UserError(
            f"model {spec.path}: takes u8 already; convert the ONNX of export.input=f32 "
            "(convert.aipp=true then has the chip normalise)"
        )
    aipp = atc.aipp_config(spec) if config.convert.aipp else None
    chip = config.convert.soc_version or soc_version()
    return atc.AtcModel(
        onnx=_with_true_shape(spec, network, folder, config.convert.dry_run),
        input_name=network.graph.input[0].name,
        height=spec.height,
        width=spec.width,
        soc_version=chip,
        aipp=aipp,
        log=config.convert.log,
    )


def _with_true_shape(spec: ModelSpec, model: onnx.ModelProto, folder: Path, dry_run: bool) -> Path:
    """The ONNX for ATC: the file itself, or a copy whose declared input is the real one.

    ATC's `--input_shape` fills in free axes; where a file declares other numbers (the authors' one
    says 10x3x32x32), ATC is given a copy that declares a free batch.
    """
    declared = onnx.load(str(spec.path)).graph.input
    ours = model.graph.input[0]
    same = any(
        value.name == ours.name
        and [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        == [d.dim_value for d in ours.type.tensor_type.shape.dim][1:]
        and not value.type.tensor_type.shape.dim[0].dim_value
        for value in declared
    )
    copy = folder.absolute() / spec.path.name
    if same:
        return spec.path
    if dry_run:
        return copy
    if copy.resolve() == spec.path:
        raise UserError(
            f"convert.output={folder}: holds the ONNX itself, whose declared shape has to be "
            "changed in a copy; name another folder"
        )
    with atomic_write(copy) as temporary:
        onnx.save(model, str(temporary))
    return copy

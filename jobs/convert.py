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
from cfdist.backends.onnx_operators import odd_parts, quantised_operators
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
    dry_run = config.convert.dry_run
    model = atc_model(config, spec, folder)
    ready = time.time()
    made = atc.convert(model, folder, config.convert.batches, dry_run=dry_run)
    lines = [f"{one.om}: {'made' if one.made else 'up to date'}" for one in made]
    if dry_run:
        lines = [*_unwritten_files(spec, model, folder), *(one.command for one in made)]
    results = Results(
        job="convert",
        seconds=phase_seconds(started, ready, time.time()),
        model={"path": str(spec.path), "sha256": spec.sha256},
        config=config.model_dump(),
        extra={"convert": [asdict(one) | {"om": str(one.om)} for one in made]},
    )
    for line in lines:
        screen.console.print(line, markup=False)
    results.write(output)
    return results.exit_code


def _unwritten_files(spec: ModelSpec, model: atc.AtcModel, folder: Path) -> list[str]:
    """Comment lines on the files that the commands name and that a dry run does not write."""
    lines = []
    if model.onnx != spec.path:
        lines.append(
            f"{model.onnx}: {spec.path} with its input declared as (batch, 3, {spec.height}, "
            f"{spec.width})"
        )
    if model.aipp is not None:
        lines.append(f"{model.aipp_path(folder)}:")
        lines += [f"  {line}" for line in model.aipp.splitlines()]
    return [f"# {line}" for line in lines]


def atc_model(config: Config, spec: ModelSpec, folder: Path) -> atc.AtcModel:
    """What ATC is given: the checked ONNX, the chip, and the AIPP text if asked for.

    Raises:
        UserError: not an ONNX of head maps with float input, or no chip known.
    """
    network = load_onnx(spec)
    if quantised := quantised_operators(network):
        # https://www.hiascend.com/document/detail/en/canncommercial/850/devaids/amct/atlasamct_16_0148.html
        raise UserError(
            f"model {spec.path}: is quantised ({', '.join(quantised)}), which ATC does not take; "
            "convert the float32 ONNX, or have Ascend's AMCT make an ONNX of ATC's own operators "
            "from it (convert_qat_model) and call atc by hand"
        )
    if odd := [name for name in odd_parts(network) if name in ("BFLOAT16", "DOUBLE")]:
        raise UserError(
            f"model {spec.path}: computes in {', '.join(odd)}, which the chip does not; export it "
            "in float32 or float16"
        )
    if takes_u8(network):
        raise UserError(
            f"model {spec.path}: takes u8 already; convert the ONNX of export.input=f32 "
            "(convert.aipp=true then has the chip normalise)"
        )
    return atc.AtcModel(
        onnx=_with_free_batch(spec, network, folder, config.convert.dry_run),
        input_name=network.graph.input[0].name,
        height=spec.height,
        width=spec.width,
        soc_version=config.convert.soc_version or soc_version(),
        aipp=atc.aipp_config(spec) if config.convert.aipp else None,
        log=config.convert.log,
    )


def _with_free_batch(spec: ModelSpec, model: onnx.ModelProto, folder: Path, dry_run: bool) -> Path:
    """The ONNX for ATC: the file itself, or a copy that declares (batch, 3, height, width).

    ATC's `--input_shape` fills in free axes only, and files can declare other numbers: the
    authors' file says 10x3x32x32.
    """
    if model.graph.input[0] in onnx.load(str(spec.path)).graph.input:
        return spec.path
    copy = folder.absolute() / spec.path.name
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

"""`job=convert`: OM files from an ONNX through Ascend's ATC, or an int8 calibration's input."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import onnx

from cfdist import execution, inputs
from cfdist.ascend import atc, check_options
from cfdist.ascend.npu_smi import soc_version
from cfdist.backends.onnx_file import load_onnx, takes_u8
from cfdist.backends.onnx_operators import odd_parts, quantised_operators
from cfdist.config import Config
from cfdist.errors import ExitCode, UserError
from cfdist.files import expanded, removed_on_failure, resolved
from cfdist.model import ModelSpec
from cfdist.preprocess import View
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds
from cfdist.workflow.files import check_space, input_bytes, input_contract
from cfdist.workflow.stages import write_calibration


def main(config: Config, output: Path, started: float) -> int:
    """Convert, show; returns the exit code."""
    spec = execution.model_spec(config.model)
    folder = expanded(config.convert.output)
    check_options("convert.extra", config.convert.extra, atc.ATC_OWN, "ATC")
    if config.convert.calibration is not None:
        return _write_calibration(config, spec, folder, output, started)
    dry_run = config.convert.dry_run
    model = atc_model(config, spec, folder)
    ready = time.time()
    call = atc.AtcCall(output, config.convert.limit_s, screen.console.print)
    made = atc.convert(model, folder, config.convert.batches, dry_run, config.convert.dynamic, call)
    if dry_run:
        for line in _dry_run_lines(spec, model, made):
            screen.console.print(line)
        return ExitCode.DONE
    results = Results(
        job="convert",
        seconds=phase_seconds(started, ready, time.time()),
        model={"path": str(spec.path), "sha256": spec.sha256},
        config=config.model_dump(),
        extra={"convert": [asdict(one) | {"om": str(one.om)} for one in made]},
    )
    results.write(output)
    return results.exit_code


def _write_calibration(
    config: Config, spec: ModelSpec, folder: Path, output: Path, started: float
) -> int:
    """Write the input of an int8 calibration; returns the exit code.

    Raises:
        UserError: the data set has too few pictures, one of them cannot be used, or the disk has no
            room.
    """
    count, contract = config.convert.calibration or 0, input_contract(spec, "f32")
    name = load_onnx(spec).graph.input[0].name
    manifest = inputs.find_pictures(config.dataset, inputs.find_ground_truth(config.dataset))
    if len(manifest.items) < count:
        raise UserError(
            f"convert.calibration={count}: dataset={config.dataset.name} has "
            f"{len(manifest.items)} pictures here; ask for fewer, or name another data set"
        )
    # AMCT takes every file of its folder.
    path = folder / f"{spec.path.stem}_calibration_{count}" / "calibration.bin"
    check_space(path.parent, count * input_bytes(contract), "convert.output")
    ready = time.time()
    what = f"{count} pictures, float32 ({count}, 3, {spec.height}, {spec.width})"
    amct = ["amct_onnx", "calibration", "--model", str(spec.path), "--data_types", "float32"]
    amct += ["--input_shape", f"{name}:{count},3,{spec.height},{spec.width}"]
    amct += ["--data_dir", str(path.parent), "--save_path", str(folder / spec.path.stem)]
    if config.convert.dry_run:
        screen.console.print(f"# {path}: {what}; written by this command without convert.dry_run")
        screen.console.print(shlex.join(amct))
        return ExitCode.DONE
    with removed_on_failure(path.parent):
        write_calibration(manifest.items[:count], contract, path)
    screen.console.print(f"{path}: {what}")
    screen.console.print(shlex.join(amct))
    results = Results(
        job="convert",
        total=count,
        done=count,
        seconds=phase_seconds(started, ready, time.time()),
        model={"path": str(spec.path), "sha256": spec.sha256},
        config=config.model_dump(),
        notes=["job=convert makes OM files of the ONNX that AMCT leaves (model.path=...)"],
        extra={"calibration": {"path": str(path), "pictures": count}},
    )
    results.write(output)
    screen.print_remarks(results)
    return results.exit_code


def _dry_run_lines(
    spec: ModelSpec, model: atc.AtcModel, made: Sequence[atc.ConvertResult]
) -> Iterator[str]:
    """What a dry run prints, for a shell: comments on what it has written, then the commands."""
    folder = made[0].om.parent
    if model.onnx != spec.path:
        sides = "height, width" if model.sizes else f"{spec.height}, {spec.width}"
        size = f"(batch, 3, {sides})"
        yield f"# {model.onnx}: written, {spec.path} with its input declared as {size}"
    if model.aipp is not None:
        yield f"# {model.aipp_path(folder)}: written"
    yield f"cd {shlex.quote(str(folder.absolute()))}"
    for one in made:
        yield one.command


def atc_model(config: Config, spec: ModelSpec, folder: Path) -> atc.AtcModel:
    """What ATC is given: the checked ONNX, the chip, and the AIPP text if asked for.

    Raises:
        UserError: not an ONNX of head maps with float input, or no chip known.
    """
    sizes = _sizes(config)
    network = load_onnx(replace(spec, size="own") if sizes else spec)
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
    path, content = _with_free_batch(spec, network, folder)
    return atc.AtcModel(
        onnx=path,
        input_name=network.graph.input[0].name,
        height=spec.height,
        width=spec.width,
        soc_version=config.convert.soc_version or soc_version(),
        aipp=atc.aipp_config(spec, bool(sizes)) if config.convert.aipp else None,
        log=config.convert.log,
        extra=tuple(config.convert.extra),
        content=content,
        sizes=sizes,
    )


def _sizes(config: Config) -> tuple[atc.InputSize, ...]:
    """The input sizes of OM files with several; none for an OM of one size.

    Raises:
        UserError: the data set cannot be read, or ATC takes fewer or more sizes.
    """
    wanted = config.convert.sizes
    if wanted is None:
        return ()
    if isinstance(wanted, list):
        sizes = [(int(rows), int(columns)) for rows, columns in (one.split("x") for one in wanted)]
        return atc.image_sizes(sizes, "convert.sizes has")
    data = config.dataset
    items = inputs.find_pictures(data, inputs.find_ground_truth(data)).items
    views = [View(scale) for scale in config.preprocess.scales]
    pictures = inputs.picture_sizes(items).values()
    shapes = {view.input_size(*size) for size in pictures for view in views}
    return atc.image_sizes(
        ((rows, columns) for columns, rows in shapes),
        f"the {len(items)} pictures of dataset={data.name} need",
    )


def _with_free_batch(
    spec: ModelSpec, model: onnx.ModelProto, folder: Path
) -> tuple[Path, bytes | None]:
    """The ONNX for ATC: the file itself, or a copy that declares the input as `model` does.

    ATC's `--input_shape` fills in free axes only, and files can declare other numbers: the
    authors' file says 10x3x32x32.

    Returns:
        The file, and the content of the copy that is to be written there; `None` for the file
        itself.
    """
    if model.graph.input[0] in onnx.load(str(spec.path)).graph.input:
        return spec.path, None
    copy = folder.absolute() / spec.path.name
    if resolved(copy) == spec.path:
        raise UserError(
            f"convert.output={folder}: holds the ONNX itself, whose declared shape has to be "
            "changed in a copy; name another folder"
        )
    return copy, model.SerializeToString()

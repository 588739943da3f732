"""`job=infer`: .bin files to output files, the guide's second step, on any backend."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfdist import backends, dumps, inputs
from cfdist.ascend.ais_bench import run_ais_bench
from cfdist.backends.base import DeviceSettings
from cfdist.config import Config
from cfdist.distributed import cluster
from cfdist.distributed.memory import refuse_too_large, slot_bytes
from cfdist.errors import UserError
from cfdist.files import write_text
from cfdist.model import ModelSpec
from cfdist.report import screen
from cfdist.report.results import Results, batch_statistics, phase_seconds
from cfdist.widerface.manifest import WorkItem

KEY = "infer.input"


@dataclass(frozen=True)
class Bins:
    """What there is to infer.

    Attributes:
        folder: Where the bins are.
        form: "f32" or "u8".
        items: The bins; ids are their stems.
        failures: (stem, reason) of files that cannot be bins.
        fingerprint: That of the pictures, where the folder has a record.
    """

    folder: Path
    form: str
    items: list[WorkItem]
    failures: list[tuple[str, str]]
    fingerprint: str | None


@dataclass
class Run:
    """What the inference gave.

    Attributes:
        summary: The content of `<name>_summary.json`; `None` where the tool left none.
        failures: (stem, reason).
        ready_at: Wall clock when the first bin was handed out.
        devices: The results' entries of the devices.
    """

    summary: dict[str, Any] | None
    failures: list[tuple[str, str]]
    ready_at: float
    devices: list[dict[str, Any]] = field(default_factory=list)


def main(config: Config, output: Path, started: float) -> int:
    """Write the output files, their summary and the results; returns the exit code."""
    if config.infer.input is None:
        raise UserError(f"{KEY}: not given; name the folder of .bin files (job=preprocess)")
    parent = Path(config.infer.output or output).expanduser().absolute()
    folder = parent / (config.infer.name or f"dumpout_bs{config.model.batch}")
    dumps.refuse_existing(folder, "infer.output, infer.name")
    backend = backends.resolve("om" if config.infer.cli else config.backend.name)
    backends.refuse_simulated(backend, f"backend={backend}")
    spec = inputs.model_spec(config.model, config.model.checkpoint if backend == "torch" else None)
    bins = _find_bins(Path(config.infer.input).expanduser().absolute(), spec)
    backends.backend_class(backend).check(spec, config.backend.model_dump())
    dump_bytes = sum(
        channels * rows * columns * 4 for channels, rows, columns in dumps.dump_shapes(spec)
    )
    dumps.check_space(folder, len(bins.items) * dump_bytes, "infer.output")

    run = (_run_cli if config.infer.cli else _run_backend)(config, backend, spec, bins, folder)
    dumps.write_record(folder, dumps.DumpRecord.of(spec, bins.fingerprint))
    ended = time.time()

    failures = sorted(bins.failures + run.failures)
    total = len(bins.items) + len(bins.failures)
    results = Results(
        job="infer",
        ap={},
        total=total,
        done=total - len(failures),
        failures=failures,
        seconds=phase_seconds(started, run.ready_at, ended, ended),
        throughput={"steady": None, "end_to_end": (total - len(failures)) / (ended - started)},
        devices=run.devices,
        model={"path": str(spec.path), "sha256": spec.sha256},
        backend="ais_bench" if config.infer.cli else backend,
        batch=spec.batch,
        config=config.model_dump(),
        notes=["job=postprocess makes prediction files of these"],
    )
    path = results.write(output)
    _print_outcome(results, run, folder)
    screen.print_path(path)
    return results.exit_code


def _find_bins(folder: Path, spec: ModelSpec) -> Bins:
    """The bins of a folder, held to the model's input and to the record of how they were made.

    Raises:
        UserError: no bins, or bins of another run.
    """
    paths = dumps.list_bins(folder, KEY)
    sizes = {path: path.stat().st_size for path in paths}
    any_form = dumps.BinRecord.of(dumps.bin_contract(spec, "f32"), 0, "")
    record = dumps.check_record(folder, any_form, ("height", "width"), KEY)
    form = record["input"] if record else dumps.bin_form(sizes, spec, KEY)
    contract = dumps.bin_contract(spec, form)
    made_so = dumps.BinRecord.of(contract, 0, "")
    dumps.check_record(folder, made_so, ("input", "color", "scale", "mean", "std"), KEY)

    wanted = dumps.bin_bytes(contract)
    items, failures = [], []
    for path, size in sizes.items():
        stem = dumps.stem_of(path.name)
        if size == wanted:
            items.append(WorkItem(stem, str(path), size))
        else:
            reason = (
                f"{path} has {size} bytes, expected {wanted} ({form}); run job=preprocess again"
            )
            failures.append((stem, reason))
    if not items:
        raise UserError(f"{KEY}: no file can be used; the first: {failures[0][1]}")
    return Bins(folder, form, items, failures, record and record["fingerprint"])


def _run_backend(config: Config, backend: str, spec: ModelSpec, bins: Bins, folder: Path) -> Run:
    """Infer on devices of a backend; the folder of the output files appears whole."""
    backend_class = backends.backend_class(backend)
    options = config.backend.model_dump()
    kind = backend_class.device_kind(options)
    is_here = config.cluster.address is None
    if is_here:
        refuse_too_large(spec, backend_class, kind)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    ready_at = 0.0

    def on_ready(done: int) -> None:
        nonlocal ready_at
        ready_at = time.time()
        progress.start(done)

    try:
        with cluster.session(
            config.cluster.address, config.cluster.dashboard, kind, config.devices
        ) as dashboard:
            from cfdist.distributed.dump_device import infer_bins

            plan = cluster.plan_devices(
                kind,
                config.devices,
                feeders=1,
                streams=config.backend.streams,
                slot_bytes=slot_bytes(spec, backend_class),
            )
            if is_here:
                refuse_too_large(spec, backend_class, kind, plan.count, plan.slots, plan.threads)
            if dashboard:
                screen.console.print(f"dashboard: {dashboard}", markup=False)
            with screen.PictureProgress(len(bins.items)) as progress:
                reports, failures = infer_bins(
                    bins.items,
                    backend=backend,
                    spec=spec,
                    options=options,
                    plan=plan,
                    form=bins.form,
                    folder=partial,
                    on_ready=on_ready,
                    on_done=lambda report: progress.advance(
                        len(report.done) + len(report.failures), len(report.failures)
                    ),
                )
        if len(failures) == len(bins.items):
            raise UserError(
                f"{KEY}={bins.folder}: no file can be used; the first: {failures[0][1]}"
            )
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

    times = [report.device_ms or report.batch_ms for report in reports.values()]
    summary = dumps.summary(times, spec.batch)
    write_text(_summary_path(folder), json.dumps(summary) + "\n")
    seconds = time.time() - ready_at
    devices = [
        {
            "name": name,
            "pictures": report.pictures,
            "busy_share": min(1.0, report.busy_seconds / seconds),
            "batch_ms": batch_statistics(report.batch_ms),
            "device_ms": batch_statistics(report.device_ms),
        }
        for name, report in sorted(reports.items())
    ]
    return Run(summary, failures, ready_at, devices)


def _run_cli(config: Config, backend: str, spec: ModelSpec, bins: Bins, folder: Path) -> Run:
    """Let `python -m ais_bench` infer, and look at what it left.

    Raises:
        UserError: it cannot be given this folder, or it failed.
    """
    names = {Path(item.path).name for item in bins.items}
    if others := sorted(path.name for path in bins.folder.iterdir() if path.name not in names):
        raise UserError(
            f"{KEY}={bins.folder}: ais_bench would take every file for a picture, and {others[0]} "
            "is none; remove it, or leave infer.cli out"
        )
    devices = config.devices
    if not isinstance(devices, list):
        devices = None if devices == "auto" else list(range(devices))
    _check_om(spec, bins, devices[0] if devices else 0)
    ready_at = time.time()
    run_ais_bench(spec.path, bins.folder, folder, spec.batch, devices)

    found = dumps.find_dumps(folder, "infer.output") if folder.is_dir() else {}
    problems = {
        item.id: dumps.dump_problem(found.get(item.id, {}), item.id, spec) for item in bins.items
    }
    failures = [(stem, problem) for stem, problem in problems.items() if problem is not None]
    if len(failures) == len(bins.items):
        raise UserError(
            f"python -m ais_bench left no usable files in {folder}; the first: {failures[0][1]}; "
            "see whether the OM's input is what the bins hold"
        )
    summary = _summary_path(folder)
    content = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None
    return Run(content, failures, ready_at)


def _check_om(spec: ModelSpec, bins: Bins, device: int) -> None:
    """Ask the OM what it takes: the tool packs files by their bytes, whatever they hold.

    Four u8 bins have the bytes of one f32 picture, and would be inferred without a complaint.

    Raises:
        UserError: it takes something else than the bins hold, or the chip cannot be opened.
    """
    from cfdist.backends.om import OmBackend

    try:
        om = OmBackend(spec, DeviceSettings(index=device))
    except RuntimeError as error:
        raise UserError(
            f"{error}; see npu-smi info, or choose another chip by devices=[N]"
        ) from None
    contract = om.contract
    om.close()
    held = dumps.bin_contract(spec, bins.form)
    if (held.dtype, held.layout) != (contract.dtype, contract.layout):
        form = "f32" if contract.dtype == "float32" else "u8"
        raise UserError(
            f"model {spec.path}: takes {contract.dtype} {contract.layout}, the bins hold "
            f"{held.dtype} {held.layout}; make them with job=preprocess preprocess.input={form}"
        )


def _summary_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_summary.json")


def _print_outcome(results: Results, run: Run, folder: Path) -> None:
    line = f"outputs of {results.done} bins in {folder}"
    if run.summary is not None:
        mean = run.summary["NPU_compute_time"]["mean"]
        line += f", {mean:.2f} ms a batch, {run.summary['throughput']:.1f} pictures/s by that"
    screen.console.print(line, markup=False)
    screen.print_results(results)

"""`job=infer`: input tensors to raw outputs, the guide's second step, on any backend."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfdist import backends, execution
from cfdist.backends.model import BackendModel
from cfdist.config import Config
from cfdist.errors import UserError
from cfdist.files import write_text
from cfdist.report import screen
from cfdist.report.results import Results, device_entry, phase_seconds
from cfdist.workflow.files import Failures, check_space, output_bytes, refuse_existing, whole_folder
from cfdist.workflow.matching import InputFiles, find_inputs
from cfdist.workflow.records import OutputRecord, summary, summary_path
from cfdist.workflow.tool import check_for_tool, infer_with_tool

KEY = "infer.input"


@dataclass
class Run:
    """What the inference gave.

    Attributes:
        summary: The content of `<name>_summary.json`; `None` if the tool left none.
        failures: (stem, reason).
        ready_at: Wall clock when the first input tensor was handed out.
        devices: The results' entries of the devices.
    """

    summary: dict[str, Any] | None
    failures: Failures
    ready_at: float
    devices: list[dict[str, Any]] = field(default_factory=list)


def main(config: Config, output: Path, started: float) -> int:
    """Write the raw outputs, their summary and the results; returns the exit code."""
    if config.infer.input is None:
        raise UserError(f"{KEY}: not given; name the folder of .bin files (job=preprocess)")
    parent = Path(config.infer.output or output).expanduser().absolute()
    folder = parent / (config.infer.name or f"dumpout_bs{config.model.batch}")
    refuse_existing(folder, "infer.output, infer.name")
    model = _find_model(config)
    files = find_inputs(Path(config.infer.input).expanduser().absolute(), model.spec, KEY)
    check_space(folder, len(files.items) * sum(output_bytes(model.spec)), "infer.output")

    run = (_run_tool if config.infer.cli else _run_devices)(config, model, files, folder)
    OutputRecord.of(model.spec, files.fingerprint).write(folder)
    ended = time.time()

    failures = sorted(files.failures + run.failures)
    total = len(files.items) + len(files.failures)
    results = Results(
        job="infer",
        ap={},
        total=total,
        done=total - len(failures),
        failures=failures,
        seconds=phase_seconds(started, run.ready_at, ended, ended),
        throughput={"steady": None, "end_to_end": (total - len(failures)) / (ended - started)},
        devices=run.devices,
        model={"path": str(model.spec.path), "sha256": model.spec.sha256},
        backend="ais_bench" if config.infer.cli else model.backend,
        batch=model.spec.batch,
        config=config.model_dump(),
        notes=["job=postprocess makes prediction files of these"],
    )
    path = results.write(output)
    _print_outcome(results, run, folder)
    screen.print_path(path)
    return results.exit_code


def _find_model(config: Config) -> BackendModel:
    """The model; the tool runs OM files alone."""
    if config.infer.cli:
        om = config.backend.model_copy(update={"name": "om"})
        config = config.model_copy(update={"backend": om})
    backends.refuse_simulated(config.backend.name, f"backend={config.backend.name}")
    return execution.find_model(config)


def _run_devices(config: Config, model: BackendModel, files: InputFiles, folder: Path) -> Run:
    """Infer on devices of a backend; the folder of the raw outputs appears whole."""
    ready_at = 0.0

    def on_ready() -> None:
        nonlocal ready_at
        ready_at = time.time()
        progress.start(0)

    with execution.start(config, [model], readers=1) as there, whole_folder(folder) as partial:
        from cfdist.workflow.device import InferenceTask, infer_files

        screen.print_dashboard(there.dashboard)
        task = InferenceTask(files.items, files.form, model, there.plan, partial)
        with screen.PictureProgress(len(files.items)) as progress:
            reports, failures = infer_files(
                task,
                on_ready,
                lambda report: progress.advance(len(report.keys), len(report.failures)),
            )
        seconds = time.time() - ready_at
        if not any(report.pictures for report in reports.values()):
            raise UserError(
                f"{KEY}={files.folder}: no file can be used; the first: {failures[0][1]}"
            )
    times = [report.device_ms or report.batch_ms for report in reports.values()]
    found = summary(times, model.spec.batch)
    write_text(summary_path(folder), json.dumps(found) + "\n")
    devices = [device_entry(name, one, seconds) for name, one in sorted(reports.items())]
    return Run(found, failures, ready_at, devices)


def _run_tool(config: Config, model: BackendModel, files: InputFiles, folder: Path) -> Run:
    """Infer by `python -m ais_bench`."""
    wanted = config.devices
    devices = None if wanted == "auto" else wanted
    if isinstance(devices, int):
        devices = list(range(devices))
    check_for_tool(model.spec, files, devices[0] if devices else 0, KEY)
    ready_at = time.time()
    found, failures = infer_with_tool(model.spec, files, folder, devices)
    return Run(found, failures, ready_at)


def _print_outcome(results: Results, run: Run, folder: Path) -> None:
    line = f"{results.done} raw outputs in {folder}"
    if run.summary is not None:
        mean = run.summary["NPU_compute_time"]["mean"]
        line += f", {mean:.2f} ms a batch, {run.summary['throughput']:.1f} pictures/s by that"
    screen.console.print(line, markup=False)
    screen.print_results(results)

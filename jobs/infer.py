"""`job=infer`: input tensors to raw outputs, the guide's second step, on any backend."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cfdist import backends, execution
from cfdist.ascend import AIS_BENCH_OWN, ToolCall, check_options
from cfdist.backends.model import BackendModel
from cfdist.config import Config
from cfdist.distributed.accelerators import allotted, chosen
from cfdist.distributed.events import Event, event_notes
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.files import expanded, write_text
from cfdist.report import screen
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Results, device_entry, phase_seconds
from cfdist.storage import shown
from cfdist.workflow import files
from cfdist.workflow.device import InferenceTask, infer_files
from cfdist.workflow.files import Failures, InputFiles, partial_folder
from cfdist.workflow.tool import (
    check_for_tool,
    infer_with_tool,
    summary,
    summary_path,
)

KEY = "infer.input"
TOOL_LOG = "ais_bench.log"


@dataclass
class Run:
    """What the inference gave.

    Attributes:
        summary: The content of `<name>_summary.json`; `None` if the tool left none.
        failures: (stem, reason) of the input tensors without raw output.
        ready_at: Wall clock when the first input tensor was handed out.
        devices: The results' entries of the devices.
        events: What happened to them.
    """

    summary: dict[str, Any] | None = None
    failures: Failures = field(default_factory=list)
    ready_at: float = 0.0
    devices: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def main(config: Config, output: Path, started: float) -> int:
    """Write the raw outputs, their summary and the results; returns the exit code."""
    if config.infer.input is None:
        raise UserError(f"{KEY}: not given; name the folder of .bin files (job=preprocess)")
    check_options("infer.cli_args", config.infer.cli_args, AIS_BENCH_OWN, "ais_bench")
    parent = expanded(config.infer.output or output).absolute()
    folder = parent / (config.infer.name or f"dumpout_bs{config.model.batch}")
    files.refuse_existing(folder, "infer.output, infer.name")
    source = expanded(config.infer.input).absolute()
    files.refuse_missing(source, KEY)
    model = _find_model(config)  # may measure which runtime is the fastest
    tensors = files.find_inputs(source, model.spec, KEY)
    if config.on_error == "fail" and tensors.failures:
        stem, reason = tensors.failures[0]
        raise StoppedError(f"{stem}: {reason} (on_error=fail)", ExitCode.PICTURES_FAILED)
    needed = len(tensors.items) * sum(files.output_bytes(model.spec))
    files.check_space(folder, needed, "infer.output")

    if config.infer.cli:
        run = _run_tool(config, model, tensors, folder, output / TOOL_LOG)
    else:
        run = _run_devices(config, model, tensors, folder)
    files.output_record(folder, model.spec, tensors.fingerprint).write()
    ended = time.time()

    failures = sorted(tensors.failures + run.failures)
    total = len(tensors.items) + len(tensors.failures)
    done = total - len(failures)
    results = Results(
        job="infer",
        total=total,
        done=done,
        failures=failures,
        seconds=phase_seconds(started, run.ready_at, ended, ended),
        throughput={"steady": None, "end_to_end": done / (ended - started)},
        devices=run.devices,
        model={"path": str(model.spec.path), "sha256": model.spec.sha256},
        backend="ais_bench" if config.infer.cli else model.backend,
        batch=model.spec.batch,
        config=config.model_dump(),
        notes=[*event_notes(run.events), "job=postprocess makes prediction files of these"],
        events=run.events,
    )
    line = f"{done} raw outputs in {shown(folder)}"
    if run.summary is not None:
        mean, rate = run.summary["NPU_compute_time"]["mean"], run.summary.get("throughput", 0.0)
        line += f", {mean:.2f} ms a batch, {rate:.1f} pictures/s by that"
    screen.console.print(line)
    return screen.finish(results, output)


def _find_model(config: Config) -> BackendModel:
    """The model; the tool runs OM files alone."""
    if config.infer.cli:
        om = config.backend.model_copy(update={"name": "om"})
        config = config.model_copy(update={"backend": om})
    backends.refuse_simulated(config.backend.name, f"backend={config.backend.name}")
    return execution.find_model(config)


def _run_devices(config: Config, model: BackendModel, tensors: InputFiles, folder: Path) -> Run:
    """Infer on devices of a backend; the folder of the raw outputs appears whole.

    Raises:
        UserError: no input tensor gives a raw output.
    """
    run = Run()

    def on_ready() -> None:
        run.ready_at = time.time()
        progress.monitor.start(0)

    with execution.start(config, [model], readers=1) as there, partial_folder(folder) as partial:
        screen.print_devices(there)
        task = InferenceTask(tensors.items, tensors.contract, model, there.plan, partial)
        with PictureProgress(len(tensors.items), config.output_dir) as progress:
            reports, run.failures, run.events = infer_files(task, on_ready, progress.monitor)
        seconds = time.time() - run.ready_at
        if len(run.failures) == len(tensors.items):
            stem, reason = run.failures[0]
            raise UserError(
                f"{KEY}={tensors.folder}: no file gives a raw output; the first, {stem}: {reason}"
            )
        partial.rename(folder)
    times = [report.device_ms or report.batch_ms for report in reports.values()]
    failed = {stem for stem, _ in run.failures}
    done = [item for item in tensors.items if item.id not in failed]
    run.summary = summary(times, model.spec.batch, done, folder)
    write_text(summary_path(folder), json.dumps(run.summary) + "\n")
    run.devices = [
        device_entry(name, one, seconds, run.ready_at) for name, one in sorted(reports.items())
    ]
    return run


def _run_tool(
    config: Config, model: BackendModel, tensors: InputFiles, folder: Path, log: Path
) -> Run:
    """Infer by `python -m ais_bench`, on the first chips that are not broken if none are named."""
    devices = None if config.devices == "auto" else config.devices
    names = chosen("npu", config.devices)  # refuses those that are not there
    # The tool counts chips within those that are visible.
    if names and allotted("npu") is None and not isinstance(devices, list):
        devices = [int(name) for name in names][: devices or 1]
    if isinstance(devices, int):
        devices = list(range(devices))
    own = check_for_tool(model.spec, tensors, devices[0] if devices else 0, KEY)
    ready_at = time.time()
    call = ToolCall(devices, [*own, *config.infer.cli_args], log)
    if config.device.timeout != "auto":
        call = replace(call, timeout=config.device.timeout)
    return Run(*infer_with_tool(model.spec, tensors, folder, call), ready_at)

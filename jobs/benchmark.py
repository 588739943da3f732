"""`job=benchmark`: the devices alone, the host alone, and both together as `job=evaluate` does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import ceil
from pathlib import Path

from cfdist import execution, inputs
from cfdist.backends.model import BackendModel
from cfdist.config import Config
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask, evaluate_manifest
from cfdist.distributed.work import item_work
from cfdist.errors import UserError
from cfdist.machine import available_cores
from cfdist.report import screen
from cfdist.report.results import Phases
from cfdist.throughput import host, tables
from cfdist.throughput.device import loop_devices
from cfdist.throughput.loops import LoopReport
from cfdist.throughput.results import Figures, benchmark_results
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest

# The end-to-end part's prediction files and journal, removed when it ends.
SCRATCH = ".benchmark"


def main(config: Config, output: Path, started: float) -> int:
    """Measure, show and write the results; returns the exit code."""
    phases = Phases(started)
    phases.end("imports")
    if config.eval.gate:
        raise UserError(
            "eval.gate: job=benchmark computes no AP; use job=evaluate, or leave eval.gate out"
        )
    parts = set(config.benchmark.parts)
    model = execution.find_model(config) if parts & {"inference", "end_to_end"} else None
    truth, manifest = _find_pictures(config) if parts & {"host", "end_to_end"} else (None, None)
    phases.end("checks")
    figures = Figures(model, manifest)
    if manifest and "host" in parts:
        # First: no Ray is there that could take time from it, or, in a sweep, an idle one.
        figures.host = _measure_host(config, model, manifest)
        phases.end("host")
    if model:
        with execution.start(config, [model]) as there:
            phases.end("ray")
            figures.plan = there.plan
            tables.print_plan(model, there.plan, there.dashboard)
            if "inference" in parts:
                figures.loops = _run_loops(config, model, there.plan)
                phases.end("inference")
            if manifest and truth and "end_to_end" in parts:
                task = _end_to_end_task(config, model, there.plan, manifest, truth, output)
                figures.end_to_end = task, _evaluate(task, phases)
        phases.end("shut_down")
    results = benchmark_results(config, figures, phases)
    tables.print_benchmark(results)
    screen.print_path(results.write(output))
    return results.exit_code


def _find_pictures(config: Config) -> tuple[GroundTruth, Manifest]:
    """The ground truth, and the first `benchmark.pictures`, each once."""
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    return truth, replace(manifest, items=manifest.items[: config.benchmark.pictures])


def _measure_host(
    config: Config, model: BackendModel | None, manifest: Manifest
) -> host.HostFigures:
    """Read the pictures in this process, with each number of reader threads."""
    counts = config.benchmark.readers
    if counts == "auto":
        kind = model.kind if model else "cpu"
        readers, devices = config.pipeline.readers, config.devices
        counts = host.reader_counts(available_cores(), readers, devices, kind)
    elif isinstance(counts, int):
        counts = [counts]
    pictures = config.benchmark.pictures
    tables.print_host(pictures, counts)
    size = (config.model.width, config.model.height)
    return host.measure_host(manifest.items, pictures, size, counts)


def _run_loops(config: Config, model: BackendModel, plan: DevicePlan) -> dict[str, LoopReport]:
    """Run the model alone, on all devices at once."""
    loops, kind = config.benchmark.loops, config.benchmark.input
    tables.print_loops(loops, kind)
    return loop_devices(model, plan, kind, loops)


def _end_to_end_task(
    config: Config,
    model: BackendModel,
    plan: DevicePlan,
    manifest: Manifest,
    truth: GroundTruth,
    output: Path,
) -> EvaluationTask:
    """What `job=evaluate` does; each device reads every picture in every pass."""
    wanted = config.benchmark.pictures * config.dataset.repeat
    passes = manifest.repeated(ceil(wanted / len(manifest.items)))
    passes = replace(passes, items=passes.items[:wanted])
    identity, style = execution.run_identity(model, passes), config.eval.protocol
    return EvaluationTask(passes, truth, model, plan, output / SCRATCH, identity, style, item_work)


def _evaluate(task: EvaluationTask, phases: Phases) -> EvaluationReport:
    """Evaluate, and throw the files away."""
    shutil.rmtree(task.output, ignore_errors=True)
    task.output.mkdir()
    try:
        with screen.PictureProgress(len(task.manifest.items)) as progress:
            report = evaluate_manifest(task, progress.listener(phases))
    finally:
        shutil.rmtree(task.output, ignore_errors=True)
    phases.end("run")
    return report

"""`job=benchmark`: the devices alone, the host alone, and both together as `job=evaluate` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cfdist import execution, inputs
from cfdist.backends.model import BackendModel
from cfdist.config import Config
from cfdist.distributed.plan import refuse_readers
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask
from cfdist.errors import UserError
from cfdist.execution import Execution
from cfdist.machine import available_cores
from cfdist.report import screen
from cfdist.report.page.run import write_run_report
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Phases
from cfdist.throughput import host
from cfdist.throughput.device import loop_devices
from cfdist.throughput.latency import measure_latency
from cfdist.throughput.results import Figures, benchmark_results, latency_results
from cfdist.throughput.tables import (
    benchmark_parts,
    latency_parts,
    print_benchmark,
    print_latency,
)
from cfdist.throughput.whole import evaluate_and_forget
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
    if config.benchmark.scenario == "single_stream":
        return _single_stream(config, output, phases)
    parts = set(config.benchmark.parts)
    truth, manifest = _find_pictures(config) if parts & {"host", "end_to_end"} else (None, None)
    model = execution.find_model(config) if parts & {"inference", "end_to_end"} else None
    if model:
        execution.refuse_here(config, [model])  # before the host part, which takes its time
    phases.end("checks")
    figures = Figures(model, manifest)
    if manifest and "host" in parts:
        # First: no Ray is there that could take time from it, or, in a sweep, an idle one.
        figures.host, figures.faults = _measure_host(config, model, manifest)
        phases.end("host")
    if model:
        with execution.start(config, [model]) as there:
            phases.end("ray")
            figures.plan = there.plan
            screen.print_plan(config, there, None)
            if "inference" in parts:
                loops, kind = config.benchmark.loops, config.benchmark.input
                least = config.benchmark.min_seconds
                screen.console.inform(
                    f"inference: {loops} batches of {kind} in each stream of each device"
                    f"{_for_at_least(least)}"
                )
                figures.loops = loop_devices(there.models[0], there.plan, kind, loops, least)
                phases.end("inference")
            if manifest and truth and "end_to_end" in parts:
                figures.end_to_end = _evaluate(
                    config, there, manifest, truth, output / SCRATCH, phases
                )
        phases.end("shut_down")
    results = benchmark_results(config, figures, phases)
    print_benchmark(results)
    screen.print_path(results.write(output))
    write_run_report(results, output, None, lambda: benchmark_parts(results))
    return results.exit_code


def _single_stream(config: Config, output: Path, phases: Phases) -> int:
    """Measure how long one picture after another takes; returns the exit code."""
    config = _one_device(config)
    pictures, least = config.benchmark.pictures, config.benchmark.min_seconds
    _, manifest = _find_pictures(config)
    model = execution.find_model(config)
    phases.end("checks")
    with execution.start(config, [model], readers=1, streams=1) as there:
        phases.end("ray")
        screen.print_plan(config, there, None)
        screen.console.inform(
            f"single_stream: {pictures} pictures, one after another{_for_at_least(least)}"
        )
        found = measure_latency(there.models[0], there.plan, manifest.items, pictures, least)
        phases.end("run")
    phases.end("shut_down")
    results = latency_results(config, there.models[0], manifest, found, phases)
    print_latency(results)
    screen.print_path(results.write(output))
    write_run_report(results, output, None, lambda: latency_parts(results))
    return results.exit_code


def _one_device(config: Config) -> Config:
    """The configuration of a run with one device that takes one picture at once.

    Raises:
        UserError: a person has asked for several devices.
    """
    devices = config.devices
    is_one = devices in (1, "auto") or (isinstance(devices, list) and len(devices) == 1)
    if "devices" in config.typed() and not is_one:
        raise UserError(
            f"devices={devices}: benchmark.scenario=single_stream is that of one device; "
            "devices=1, or the number of one, such as devices=[0]"
        )
    one = devices[:1] if isinstance(devices, list) else 1
    model = config.model.model_copy(update={"batch": 1})
    return config.model_copy(update={"devices": one, "model": model})


def _for_at_least(seconds: float) -> str:
    return f", for at least {seconds:g} s" if seconds else ""


def _find_pictures(config: Config) -> tuple[GroundTruth, Manifest]:
    """The ground truth, and the first `benchmark.pictures`, each once."""
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    return truth, replace(manifest, items=manifest.items[: config.benchmark.pictures])


def _measure_host(
    config: Config, model: BackendModel | None, manifest: Manifest
) -> tuple[list[host.HostRate], host.Faults]:
    """Read the pictures in this process, with each number of reader threads."""
    counts = config.benchmark.readers
    if counts == "auto":
        kind = model.kind if model else "cpu"
        readers, devices = config.pipeline.readers, config.devices
        counts = host.reader_counts(available_cores(), readers, devices, kind)
    elif isinstance(counts, int):
        counts = [counts]
    for count in counts:
        refuse_readers("benchmark.readers", count, available_cores())
    pictures = config.benchmark.pictures
    screen.console.inform(
        f"host: reading {pictures} pictures with {', '.join(map(str, counts))} "
        f"reader thread{'' if counts == [1] else 's'}"
    )
    size = (config.model.width, config.model.height)
    least = config.benchmark.min_seconds
    return host.measure_host(manifest.items, pictures, size, counts, least)


def _evaluate(
    config: Config,
    there: Execution,
    manifest: Manifest,
    truth: GroundTruth,
    scratch: Path,
    phases: Phases,
) -> tuple[EvaluationTask, EvaluationReport]:
    """Do what `job=evaluate` does, and throw the files away."""
    wanted = config.benchmark.pictures * config.dataset.repeat
    with PictureProgress(wanted, config.output_dir) as progress:
        listener = progress.listener(phases, there.models[0])
        found = evaluate_and_forget(config, there, (truth, manifest), wanted, scratch, listener)
    phases.end("run")
    return found

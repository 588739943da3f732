"""`job=benchmark`: the devices alone, the host alone, and both together as `job=evaluate` does."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdist import host_benchmark, inputs
from cfdist.command.phases import Phases
from cfdist.config import Config
from cfdist.distributed import cluster
from cfdist.errors import UserError
from cfdist.host_benchmark import HostRate
from cfdist.machine import available_cores
from cfdist.report import benchmark_screen, screen
from cfdist.report.results import Results, batch_statistics
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest

from . import evaluate
from .evaluate import Model

if TYPE_CHECKING:
    from cfdist.distributed.cluster import DevicePlan
    from cfdist.distributed.looping_device import LoopReport
    from cfdist.distributed.run import Outcome

# The end-to-end part's prediction files and journal; gone when it ends.
SCRATCH = ".benchmark"
MAX_FEEDERS = 1024


@dataclass
class Figures:
    """What was measured; `None` where the part was not asked for.

    Attributes:
        host: One entry for each number of feeders.
        plan: The devices.
        loops: Device name -> what it did in the inference part.
        passes: The pictures of the end-to-end part.
        outcome: What that part gave.
        failures: Picture id -> reason.
    """

    host: list[HostRate] | None = None
    plan: DevicePlan | None = None
    loops: dict[str, LoopReport] | None = None
    passes: Manifest | None = None
    outcome: Outcome | None = None
    failures: dict[str, str] = field(default_factory=dict)


def main(config: Config, output: Path, started: float) -> int:
    """Measure, show and write the results; returns the exit code."""
    phases = Phases(started)
    phases.end("imports")
    if config.eval.gate:
        raise UserError(
            "eval.gate: job=benchmark computes no AP; use job=evaluate, or leave eval.gate out"
        )
    parts = set(config.benchmark.parts)
    model = evaluate.find_model(config) if parts & {"inference", "end_to_end"} else None
    manifest, truth = _find_pictures(config) if parts & {"host", "end_to_end"} else (None, None)
    phases.end("checks")

    figures = Figures()
    if "host" in parts:
        # First: no Ray is there that could take time from it, or, in a sweep, an idle one.
        _measure_host(config, model, manifest, figures)
        phases.end("host")
    if model is not None:
        with evaluate.session(config, model) as dashboard:
            phases.end("ray")
            figures.plan = evaluate.plan_devices(config, model)
            benchmark_screen.print_plan(model.backend, model.spec, figures.plan, dashboard)
            if "inference" in parts:
                _run_loops(config, model, figures)
                phases.end("inference")
            if "end_to_end" in parts:
                _run_whole(config, model, manifest, truth, output, figures, phases)
        phases.end("shut_down")
    results = summarise(config, model, manifest, figures, phases)
    benchmark_screen.print_benchmark(results)
    screen.print_path(results.write(output))
    return results.exit_code


def _find_pictures(config: Config) -> tuple[Manifest, GroundTruth]:
    """The first `benchmark.pictures`, each once, and the ground truth."""
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    return replace(manifest, items=manifest.items[: config.benchmark.pictures]), truth


def _measure_host(
    config: Config, model: Model | None, manifest: Manifest, figures: Figures
) -> None:
    """Read the pictures in this process, by each number of feeders.

    Raises:
        UserError: no picture can be read.
    """
    size = (config.model.height, config.model.width)
    cores = available_cores()
    counts = config.benchmark.readers
    if counts == "auto":
        kind = "cpu" if model is None else model.kind
        counts = host_benchmark.feeder_counts(cores, configured_feeders(config, kind, cores))
    elif isinstance(counts, int):
        counts = [counts]
    benchmark_screen.print_host(config.benchmark.pictures, counts)
    usable, failures = host_benchmark.find_usable(manifest.items, *size, cores)
    if not usable:
        raise UserError(
            f"dataset: none of its {len(manifest.items)} pictures can be read; the first: "
            f"{failures[0][1]}"
        )
    figures.failures |= dict(failures)
    work = list(itertools.islice(itertools.cycle(usable), config.benchmark.pictures))
    figures.host = [host_benchmark.measure(work, *size, feeders) for feeders in counts]


def configured_feeders(config: Config, kind: str, cores: int) -> int | None:
    """The feeders of all devices of the run, where that is known before Ray counts the devices."""
    feeders, devices = config.pipeline.readers, config.devices
    if feeders == "auto" or (devices == "auto" and kind != "cpu"):
        return None
    if devices == "auto":
        count = max(1, cores // cluster.CORES_PER_AUTO_DEVICE)
    else:
        count = len(devices) if isinstance(devices, list) else devices
    return min(MAX_FEEDERS, feeders * count)


def _run_loops(config: Config, model: Model, figures: Figures) -> None:
    """The model alone, on all devices at once."""
    from cfdist.distributed.looping_device import input_kind, loop_devices

    kind = input_kind(config.benchmark.input, model.backend_class)
    benchmark_screen.print_loops(config.benchmark.loops, kind)
    figures.loops = loop_devices(
        backend=model.backend,
        spec=model.spec,
        options=model.options,
        plan=figures.plan,
        kind=kind,
        loops=config.benchmark.loops,
    )


def _run_whole(
    config: Config,
    model: Model,
    manifest: Manifest,
    truth: GroundTruth,
    output: Path,
    figures: Figures,
    phases: Phases,
) -> None:
    """What `job=evaluate` does, every picture read each time and all files thrown away."""
    from cfdist.distributed.run import evaluate_manifest

    wanted = config.benchmark.pictures * config.dataset.repeat
    passes = manifest.repeated(ceil(wanted / len(manifest.items)))
    figures.passes = replace(passes, items=passes.items[:wanted])
    scratch = output / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        with screen.PictureProgress(wanted) as progress:

            def on_ready(done: int) -> None:
                phases.end("devices")
                progress.start(done)

            figures.outcome = evaluate_manifest(
                figures.passes,
                truth,
                backend=model.backend,
                spec=model.spec,
                options=model.options,
                plan=figures.plan,
                output=scratch,
                fingerprint=inputs.run_fingerprint(model.spec, manifest, model.backend),
                style=config.eval.protocol,
                on_ready=on_ready,
                on_done=lambda report: progress.advance(report.done + report.failed, report.failed),
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    phases.end("run")
    figures.failures |= dict(figures.outcome.evaluation.failures)


def summarise(
    config: Config,
    model: Model | None,
    manifest: Manifest | None,
    figures: Figures,
    phases: Phases,
) -> Results:
    """The figures as they are written and shown.

    Args:
        config: The run's.
        model: What the devices ran, if they ran.
        manifest: The pictures, each once, if there are any.
        figures: What was measured.
        phases: Those of `jobs.evaluate.summarise`, and "host" and "inference".
    """
    whole = _evaluated(config, model, manifest, figures, phases)
    inference = _inference_entry(config, model, figures)
    simulated = model is not None and model.backend_class.is_simulated
    total = 0 if manifest is None else len(manifest.items)
    throughput = whole.throughput if whole else {"steady": None, "end_to_end": None}
    return Results(
        job="benchmark",
        ap={},
        total=total,
        done=total - len(figures.failures),
        failures=sorted(figures.failures.items()),
        seconds=_seconds(whole, phases),
        throughput={**throughput, "pure_inference": inference and inference["pictures_per_second"]},
        devices=whole.devices if whole else [],
        model=None
        if model is None or simulated
        else {"path": str(model.spec.path), "sha256": model.spec.sha256},
        backend=model and model.backend,
        batch=model and model.spec.batch,
        simulated=simulated,
        fingerprint=whole and whole.fingerprint,
        config=config.model_dump(),
        notes=[
            *(evaluate.preset_notes(config) if simulated else []),
            *_notes(config, manifest, figures),
        ],
        extra={
            **(whole.extra if whole else {}),
            "benchmark": {
                "inference": inference,
                "host": figures.host and [asdict(rate) for rate in figures.host],
                "end_to_end": whole and _end_to_end_entry(whole, figures.passes),
                "bound": _bound_entry(model, inference, figures),
            },
        },
    )


def _evaluated(
    config: Config,
    model: Model | None,
    manifest: Manifest | None,
    figures: Figures,
    phases: Phases,
) -> Results | None:
    """The end-to-end part's results, as `job=evaluate` alone would have them."""
    if model is None or figures.outcome is None:
        return None
    alone = Phases(0.0)
    alone.seconds = {
        name: seconds
        for name, seconds in phases.seconds.items()
        if name not in ("host", "inference")
    }
    fingerprint = inputs.run_fingerprint(model.spec, manifest, model.backend)
    return evaluate.summarise(config, model, figures.passes, figures.outcome, fingerprint, alone)


def _seconds(whole: Results | None, phases: Phases) -> dict[str, float | None]:
    """The results' `seconds`; run and evaluation are the end-to-end part's."""
    spent = phases.seconds
    own: dict[str, float | None] = {
        "start_up": sum(spent.get(name, 0.0) for name in evaluate.START_UP),
        "run": None,
        "evaluation": None,
        "shut_down": spent.get("shut_down"),
    }
    if whole is not None:
        own = {name: whole.seconds[name] for name in own}
    parts = {name: spent.get(name) for name in ("inference", "host")}
    return {"total": sum(spent.values()), **own, **parts}


def _inference_entry(
    config: Config, model: Model | None, figures: Figures
) -> dict[str, Any] | None:
    if model is None or figures.loops is None:
        return None
    from cfdist.distributed.looping_device import common_rates, input_kind

    rates = common_rates(list(figures.loops.values()), model.spec.batch)
    return {
        "loops": config.benchmark.loops,
        "input": input_kind(config.benchmark.input, model.backend_class),
        "pictures_per_second": sum(rates),
        "devices": [
            {
                "name": name,
                "slots": len(report.ends),
                "pictures_per_second": rate,
                "batch_ms": batch_statistics(report.batch_ms.tolist()),
                "device_ms": batch_statistics(report.device_ms),
            }
            for (name, report), rate in zip(figures.loops.items(), rates, strict=True)
        ],
    }


def _end_to_end_entry(whole: Results, passes: Manifest) -> dict[str, Any]:
    return {
        "pictures": len(passes.items),
        "steady_pictures_per_second": whole.throughput["steady"],
        "end_to_end_pictures_per_second": whole.throughput["end_to_end"],
        "cpu_ms_per_picture": whole.extra["cpu_ms_per_picture"],
    }


def _bound_entry(
    model: Model | None, inference: dict[str, Any] | None, figures: Figures
) -> dict[str, Any] | None:
    if model is None or inference is None or not figures.host:
        return None
    plan = figures.plan
    shares_cores = model.kind == "cpu" and not model.backend_class.is_simulated
    return find_bound(
        inference["pictures_per_second"],
        figures.host,
        plan.count * plan.feeders,
        plan.count * plan.threads if shares_cores else None,
    )


def find_bound(
    devices_rate: float, host: Sequence[HostRate], feeders: int, shared_cores: int | None
) -> dict[str, Any]:
    """What bounds a run: the devices or the host.

    Args:
        devices_rate: Pictures a second of all devices' inference alone.
        host: The host's rates, at least one.
        feeders: Of all devices of the run. The host's rate is the best that was measured with so
            many or fewer, or that of the fewest.
        shared_cores: Cores on which both inference and the feeders run; `None` where inference
            runs elsewhere.

    Returns:
        The results' `bound` entry. On shared cores the two times of a picture add up.
    """
    fewest = min(host, key=lambda rate: rate.feeders)
    best = max(
        [rate for rate in host if rate.feeders <= feeders] or [fewest],
        key=lambda rate: rate.pictures_per_second,
    )
    together = None
    if shared_cores is not None:
        together = 1 / (1 / devices_rate + best.cpu_ms_per_picture / 1000 / shared_cores)
    return {
        "bound_by": "host" if best.pictures_per_second < devices_rate else "devices",
        "devices_pictures_per_second": devices_rate,
        "host_pictures_per_second": best.pictures_per_second,
        "host_feeders": best.feeders,
        "shared_cores_pictures_per_second": together,
    }


def _notes(config: Config, manifest: Manifest | None, figures: Figures) -> list[str]:
    notes = []
    if manifest is not None and config.dataset.kind == "sample":
        notes.append(
            "the pictures are those of the embedded sample set; others may take longer to read "
            "(dataset=wider_val dataset.root=... dataset.ground_truth=...)"
        )
    if manifest is not None and len(manifest.items) < config.benchmark.pictures:
        notes.append(
            f"the data set has {len(manifest.items)} pictures; they were repeated to make "
            f"{config.benchmark.pictures}"
        )
    if figures.host and figures.failures:
        notes.append("pictures that cannot be read are in none of the host's rates")
    outcome = figures.outcome
    if outcome is None:
        return notes
    if outcome.timeline.steady_rate is None:
        notes.append("too few pictures for a steady rate; raise benchmark.pictures")
    if config.cluster.address is not None:
        notes.append("the processor time of a cluster that ran before is not known")
    return notes + evaluate.replacement_notes(outcome.lost)

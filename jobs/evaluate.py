"""`job=evaluate`: the AP and the throughput of a model on a data set, on many devices."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdist import backends, inputs
from cfdist.backends.simulated import PUBLISHED_INPUT
from cfdist.command.phases import Phases
from cfdist.config import Config
from cfdist.distributed import cluster
from cfdist.distributed.journal import check_identity
from cfdist.distributed.memory import needed_bytes, refuse_too_large, slot_bytes
from cfdist.machine import available_memory, peak_memory, reset_peak_memory
from cfdist.model import ModelSpec
from cfdist.report import gate, screen
from cfdist.report.results import (
    Results,
    batch_statistics,
    chosen_first,
)
from cfdist.run_folder import JOURNAL, LOG, PARQUET, PREDICTIONS
from cfdist.widerface.manifest import Manifest

if TYPE_CHECKING:
    from cfdist.backends.base import Backend
    from cfdist.distributed.cluster import DevicePlan
    from cfdist.distributed.run import Outcome

# The phases before the first picture.
START_UP = ("imports", "checks", "ray", "devices")


@dataclass(frozen=True)
class Model:
    """What the devices run.

    Attributes:
        backend: The resolved backend.
        backend_class: Its class.
        spec: The model.
        options: The backend's options.
        kind: "cpu", "gpu" or "npu": what a device is.
    """

    backend: str
    backend_class: type[Backend]
    spec: ModelSpec
    options: dict[str, Any]
    kind: str


def main(config: Config, output: Path, started: float) -> int:
    """Evaluate, show and write the results; returns the exit code."""
    phases = Phases(started)
    phases.end("imports")
    reset_peak_memory()
    gate.refuse_empty(config)
    model = find_model(config)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth).repeated(config.dataset.repeat)
    fingerprint = inputs.run_fingerprint(model.spec, manifest, model.backend)
    check_identity(output / JOURNAL, fingerprint)
    phases.end("checks")
    with session(config, model) as dashboard:
        phases.end("ray")
        from cfdist.distributed.picture_cache import choose_cache
        from cfdist.distributed.run import evaluate_manifest

        plan = plan_devices(config, model)
        pictures = choose_cache(
            config.preprocess.cache,
            None,
            manifest,
            model.spec.height,
            model.spec.width,
            needed=needed_bytes(*_layout(model, plan)),
        )
        screen.print_plan(config, model.backend, model.spec, manifest, plan, dashboard)
        with screen.PictureProgress(len(manifest.items)) as progress:

            def on_ready(done: int) -> None:
                phases.end("devices")
                progress.start(done)

            outcome = evaluate_manifest(
                manifest,
                truth,
                backend=model.backend,
                spec=model.spec,
                options=model.options,
                plan=plan,
                output=output,
                fingerprint=fingerprint,
                style=config.eval.protocol,
                on_ready=on_ready,
                on_done=lambda report: progress.advance(report.done + report.failed, report.failed),
                pictures=pictures,
            )
        phases.end("run")
    phases.end("shut_down")
    results = summarise(config, model, manifest, outcome, fingerprint, phases)
    if model.backend_class.is_simulated:
        # They would look like a detector's that has found nothing.
        shutil.rmtree(output / PREDICTIONS)
        (output / PARQUET).unlink()
    path = results.write(output)
    shutil.rmtree(output / JOURNAL)
    screen.print_results(results)
    screen.print_path(path)
    return gate.exit_code(config, results)


def find_model(config: Config) -> Model:
    """What the configuration has the devices run.

    Raises:
        UserError: the backend cannot run it, or one device of it does not fit this machine.
    """
    backend = backends.resolve(config.backend.name)
    backend_class = backends.backend_class(backend)
    options = config.backend.model_dump()
    spec = inputs.spec_for_backend(config.model, backend)
    backend_class.check(spec, options)
    kind = backend_class.device_kind(options)
    if config.cluster.address is None:
        refuse_too_large(spec, backend_class, kind, freeable=_freeable_bytes(config))
    return Model(backend, backend_class, spec, options, kind)


@contextlib.contextmanager
def session(config: Config, model: Model) -> Iterator[str | None]:
    """The Ray session of the run; in a sweep a new one, if the devices need what its store holds.

    Ray's store gives memory back to the system at its end, not when pictures in it are given up.

    Yields:
        The dashboard's URL, or `None` without one.

    Raises:
        UserError: the devices do not fit this machine, or no cluster answers at its address.
    """
    settings = (config.cluster.address, config.cluster.dashboard, model.kind, config.devices)
    with contextlib.ExitStack() as stack:
        dashboard = stack.enter_context(cluster.session(*settings))
        if _needs_what_is_kept(config, model):
            cluster.close_kept_session()
            dashboard = stack.enter_context(cluster.session(*settings))
        yield dashboard


def _needs_what_is_kept(config: Config, model: Model) -> bool:
    freeable = _freeable_bytes(config)
    if not freeable or config.cluster.address is not None:
        return False
    layout = _layout(model, _plan(config, model))
    refuse_too_large(*layout, freeable=freeable)
    return needed_bytes(*layout) > available_memory()


def plan_devices(config: Config, model: Model) -> DevicePlan:
    """The run's devices; its session is there.

    Raises:
        UserError: there are fewer, or they do not fit this machine together.
    """
    plan = _plan(config, model)
    if config.cluster.address is None:
        refuse_too_large(*_layout(model, plan))
    return plan


def _plan(config: Config, model: Model) -> DevicePlan:
    return cluster.plan_devices(
        model.kind,
        config.devices,
        feeders=config.pipeline.readers,
        streams=config.backend.streams,
        slot_bytes=slot_bytes(model.spec, model.backend_class),
    )


def _layout(model: Model, plan: DevicePlan) -> tuple[ModelSpec, type[Backend], str, int, int, int]:
    return model.spec, model.backend_class, model.kind, plan.count, plan.slots, plan.threads


def _freeable_bytes(config: Config) -> int:
    """What a sweep's kept pictures take, where they may give way to the devices."""
    return 0 if config.preprocess.cache is True else cluster.kept_bytes()


def summarise(
    config: Config,
    model: Model,
    manifest: Manifest,
    outcome: Outcome,
    fingerprint: str,
    phases: Phases,
) -> Results:
    """The run's figures as they are written and shown.

    Args:
        config: The run's.
        model: What the devices ran.
        manifest: The pictures, in all passes.
        outcome: What the devices and the reducer gave.
        fingerprint: The run's.
        phases: "imports", "checks", "ray" and "devices" before the first picture, "run" with the
            evaluation, "shut_down" after it.
    """
    simulated = model.backend_class.is_simulated
    start_up = {name: phases.seconds.get(name, 0.0) for name in START_UP}
    total_seconds = sum(phases.seconds.values())
    run_seconds = outcome.timeline.seconds
    evaluation = outcome.evaluation
    finished = outcome.timeline.points[-1][1] if outcome.timeline.points else 0
    return Results(
        job="evaluate",
        ap={} if simulated else chosen_first(evaluation.ap, config.eval.protocol),
        total=len(manifest.pictures),
        done=len(manifest.pictures) - len(evaluation.failures),
        failures=evaluation.failures,
        seconds={
            "total": total_seconds,
            "start_up": sum(start_up.values()),
            "run": run_seconds,
            "evaluation": evaluation.seconds,
            "shut_down": phases.seconds.get("shut_down", 0.0),
        },
        throughput={
            "steady": outcome.timeline.steady_rate,
            "end_to_end": finished / total_seconds,
        },
        devices=[
            {
                "name": name,
                "pictures": report.pictures,
                "busy_share": min(1.0, report.busy_seconds / run_seconds) if run_seconds else 0.0,
                "batch_ms": batch_statistics(report.batch_ms),
                "device_ms": batch_statistics(report.device_ms),
            }
            for name, report in sorted(outcome.devices.items())
        ],
        model=None if simulated else {"path": str(model.spec.path), "sha256": model.spec.sha256},
        backend=model.backend,
        batch=model.spec.batch,
        fingerprint=fingerprint,
        passes=manifest.passes,
        config=config.model_dump(),
        simulated=simulated,
        notes=_notes(config, manifest, outcome, simulated),
        extra={
            "start_up_seconds": start_up | {"first_chunk": outcome.timeline.first_seconds},
            "pictures_decoded": sum(report.decoded for report in outcome.devices.values()),
            "cpu_ms_per_picture": 1000 * outcome.cpu_seconds / finished
            if finished and config.cluster.address is None
            else None,
            "peak_memory_mb": _peak_memory(outcome),
        },
        expected=None if simulated else gate.expected(config, evaluation.ap),
    )


def _peak_memory(outcome: Outcome) -> dict[str, float]:
    """Most resident memory of the driver, the reducer and each device, megabytes."""
    peaks = {"driver": peak_memory(), "reducer": outcome.evaluation.peak_memory}
    peaks |= {name: report.peak_memory for name, report in sorted(outcome.devices.items())}
    return {name: peak / 1e6 for name, peak in peaks.items()}


def _notes(config: Config, manifest: Manifest, outcome: Outcome, simulated: bool) -> list[str]:
    notes = preset_notes(config) if simulated else []
    if config.dataset.kind == "sample" and not simulated:
        notes.append(
            "this is the embedded sample set, a check that everything works; its AP says nothing "
            "about WIDER FACE (for that: dataset=wider_val dataset.root=... "
            "dataset.ground_truth=...)"
        )
    if manifest.absent:
        notes.append(
            f"{manifest.absent} pictures of the ground truth are not in dataset.root; "
            "their faces do not count"
        )
    if manifest.unknown:
        notes.append(
            f"{manifest.unknown} pictures in dataset.root are not in the ground truth; left out"
        )
    # What follows counts a picture in every pass.
    pictures = "pictures" if manifest.passes == 1 else "pictures, each counted in every pass,"
    if outcome.resumed:
        notes.append(f"{outcome.resumed} {pictures} were done by an earlier, interrupted run")
    decoded = sum(report.decoded for report in outcome.devices.values())
    inferred = sum(report.pictures for report in outcome.devices.values())
    if decoded < inferred:
        notes.append(
            f"{inferred - decoded} {pictures} were not decoded again but taken from Ray's object "
            "store (preprocess.cache)"
        )
    notes += replacement_notes(outcome.lost)
    if outcome.evaluation.failures:
        notes.append("failed pictures are left out of the AP")
    return notes


def preset_notes(config: Config) -> list[str]:
    """What to know of a simulated chip's published times at another input size."""
    uses_preset = config.backend.latency_ms is None
    if not uses_preset or (config.model.height, config.model.width) == PUBLISHED_INPUT:
        return []
    rows, columns = PUBLISHED_INPUT
    return [
        f"the times of backend.preset={config.backend.preset} are those of an input of "
        f"{rows}x{columns}, whatever this run's; set backend.latency_ms for another"
    ]


def replacement_notes(lost: Sequence[str]) -> list[str]:
    """A sentence for each device that died.

    Args:
        lost: The device's name, once for each time that it died.
    """
    return [
        f"{name} died {lost.count(name)} time{'s' if lost.count(name) > 1 else ''} and was "
        f"replaced (see {LOG}); its figures are those of the last one"
        for name in sorted(set(lost))
    ]

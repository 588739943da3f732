"""From a finished evaluation to its results: figures and notes."""

from __future__ import annotations

from collections.abc import Sequence

from cfdist.backends.simulated import PUBLISHED_INPUT
from cfdist.config import Config
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask
from cfdist.execution import PictureSupply
from cfdist.files import LOG
from cfdist.machine import peak_memory
from cfdist.report import gate
from cfdist.report.phases import START_UP, Phases
from cfdist.report.results import Results, chosen_first, device_entry
from cfdist.widerface.manifest import Manifest


def evaluation_results(
    config: Config,
    task: EvaluationTask,
    report: EvaluationReport,
    supply: PictureSupply,
    phases: Phases,
) -> Results:
    """The results of a run, as they are written and shown.

    Args:
        config: The run's.
        task: What was evaluated.
        report: What the devices and the reducer gave.
        supply: Where the pictures came from.
        phases: Those of `START_UP` before the first picture, "run" with the evaluation, and
            "shut_down" after it.
    """
    model, manifest, evaluation = task.model, task.manifest, report.evaluation
    start_up = {name: phases.seconds.get(name, 0.0) for name in START_UP}
    total_seconds = sum(phases.seconds.values())
    run_seconds = report.timeline.seconds
    finished = report.timeline.points[-1][1] if report.timeline.points else 0
    is_measured = finished and config.cluster.address is None
    return Results(
        job="evaluate",
        ap={} if model.is_simulated else chosen_first(evaluation.ap, config.eval.protocol),
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
            "steady": report.timeline.steady_rate,
            "end_to_end": finished / total_seconds,
        },
        devices=[
            device_entry(name, one, run_seconds) for name, one in sorted(report.devices.items())
        ],
        model=None
        if model.is_simulated
        else {"path": str(model.spec.path), "sha256": model.spec.sha256},
        backend=model.backend,
        batch=model.spec.batch,
        fingerprint=task.identity.fingerprint,
        passes=manifest.passes,
        config=config.model_dump(),
        simulated=model.is_simulated,
        notes=_notes(config, task, report, supply),
        extra={
            "start_up_seconds": start_up | {"first_chunk": report.timeline.first_seconds},
            "pictures_decoded": _decoded(report, supply),
            "letterboxed": supply.origin,
            "cpu_ms_per_picture": 1000 * report.cpu_seconds / finished if is_measured else None,
            "peak_memory_mb": _peak_memory(report),
        },
        expected=None if model.is_simulated else gate.expected(config, evaluation.ap),
    )


def _decoded(report: EvaluationReport, supply: PictureSupply) -> int:
    """Picture files that were read and decoded in this run, wherever that was."""
    devices = report.devices.values()
    if supply.origin == "cluster":
        return sum(device.pictures for device in devices)
    return supply.decoded + sum(device.decoded for device in devices)


def _peak_memory(report: EvaluationReport) -> dict[str, float]:
    """Most resident memory of the driver, the reducer and each device, megabytes."""
    peaks = {"driver": peak_memory(), "reducer": report.evaluation.peak_memory}
    peaks |= {name: one.peak_memory for name, one in sorted(report.devices.items())}
    return {name: peak / 1e6 for name, peak in peaks.items()}


def _notes(
    config: Config, task: EvaluationTask, report: EvaluationReport, supply: PictureSupply
) -> list[str]:
    is_simulated = task.model.is_simulated
    notes = preset_notes(config) if is_simulated else []
    if config.dataset.kind == "sample" and not is_simulated:
        notes.append(
            "this is the embedded sample set, a check that everything works; its AP says nothing "
            "about WIDER FACE (for that: dataset=wider_val dataset.root=... "
            "dataset.ground_truth=...)"
        )
    notes += _manifest_notes(task.manifest)
    # What follows counts a picture in every pass.
    pictures = "pictures" if task.manifest.passes == 1 else "pictures, each counted in every pass,"
    if report.resumed:
        notes.append(f"{report.resumed} {pictures} were done by an earlier, interrupted run")
    inferred = sum(device.pictures for device in report.devices.values())
    kept = inferred - _decoded(report, supply)
    if kept > 0:
        notes.append(
            f"{kept} {pictures} were not decoded again but taken from Ray's object store "
            "(preprocess.cache)"
        )
    notes += replacement_notes(report.lost)
    if report.evaluation.failures:
        notes.append("failed pictures are left out of the AP")
    return notes


def _manifest_notes(manifest: Manifest) -> list[str]:
    notes = []
    if manifest.absent:
        notes.append(
            f"{manifest.absent} pictures of the ground truth are not in dataset.root; "
            "their faces do not count"
        )
    if manifest.unknown:
        notes.append(
            f"{manifest.unknown} pictures in dataset.root are not in the ground truth; left out"
        )
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

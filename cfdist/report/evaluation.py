"""From a finished evaluation to its results: figures and notes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from cfdist.backends.simulated import PUBLISHED_INPUT
from cfdist.config import Config
from cfdist.distributed.events import event_notes
from cfdist.distributed.reducer import Evaluation
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask
from cfdist.execution import PictureSupply
from cfdist.files import PREDICTIONS
from cfdist.inputs import find_face_labels
from cfdist.machine import peak_memory
from cfdist.report.accuracy import accuracy_notes, expectation, expected_notes, how_tested
from cfdist.report.page.quality import Evidence
from cfdist.report.results import (
    START_UP,
    Phases,
    Results,
    chosen_first,
    damage_notes,
    device_entry,
    expected_ap,
)
from cfdist.widerface.own import metric_notes


def evaluation_results(
    config: Config,
    task: EvaluationTask,
    report: EvaluationReport,
    supply: PictureSupply,
    phases: Phases,
) -> Results:
    """The results of a run, as they are written and shown.

    Args:
        config: The run's configuration.
        task: What was evaluated.
        report: What the devices and the reducer report.
        supply: Where the pictures came from.
        phases: Those of `START_UP` before the first picture, "run" with the evaluation, and
            "shut_down" after it.
    """
    model, manifest, evaluation = task.model, task.manifest, report.evaluation
    start_up = {name: phases.seconds.get(name, 0.0) for name in START_UP}
    total_seconds = sum(phases.seconds.values())
    timeline, run_seconds = report.timeline, report.timeline.seconds
    finished = timeline.points[-1][1] if timeline.points else 0
    is_measured = finished and config.cluster.joined is None
    of_model: dict[str, Any] = {}
    usable = len(manifest.pictures) - len(evaluation.failures)
    notes = _notes(config, task, report, supply)
    if not model.is_simulated:
        notes = _accuracy_notes(config, task, evaluation) + notes
        of_model = {
            "ap": chosen_first(evaluation.ap, config.eval.protocol),
            "test": how_tested(config),
            "model": {"path": str(model.spec.path), "sha256": model.spec.sha256},
            "expected": expectation(config, evaluation.ap, usable),
        }
    return Results(
        job="evaluate",
        total=len(manifest.pictures),
        done=usable,
        failures=evaluation.failures,
        damaged=evaluation.damaged,
        seconds={
            "total": total_seconds,
            "start_up": sum(start_up.values()),
            "run": run_seconds,
            "evaluation": evaluation.seconds,
            "shut_down": phases.seconds.get("shut_down", 0.0),
        },
        throughput={"steady": timeline.steady_rate, "end_to_end": finished / total_seconds},
        devices=_device_entries(report),
        backend=model.backend,
        batch=model.spec.batch,
        fingerprint=task.identity.fingerprint,
        passes=manifest.passes,
        config=config.model_dump(),
        simulated=model.is_simulated,
        notes=notes,
        events=[*evaluation.events, *report.events],
        extra={
            "start_up_seconds": start_up | {"first_chunk": timeline.first_seconds},
            "pictures_decoded": _decoded(report),
            "letterboxed": supply.origin,
            "cpu_ms_per_picture": 1000 * report.cpu_seconds / finished if is_measured else None,
            "peak_memory_mb": _peak_memory(report),
            "metrics": evaluation.metrics,
        },
        **of_model,
    )


def evaluation_evidence(
    config: Config, task: EvaluationTask, evaluation: Evaluation
) -> Evidence | None:
    """What the page of a run shows; `None` if no model ran. The prediction files are in place."""
    if task.model.is_simulated or evaluation.matched is None:
        return None
    return Evidence(
        task.truth,
        evaluation.matched,
        _prediction_files(task),
        {item.id: item.path for item in task.manifest.pictures},
        partial(find_face_labels, config.dataset),
    )


def _prediction_files(task: EvaluationTask) -> dict[str, Path | None]:
    """Picture id -> its prediction file, there or not."""
    folder = task.output / PREDICTIONS
    return {item.id: folder / f"{item.id}.txt" for item in task.manifest.pictures}


def _accuracy_notes(config: Config, task: EvaluationTask, evaluation: Evaluation) -> list[str]:
    """Notes on the AP; the prediction files are in place by now."""
    if evaluation.reach is None:
        return []
    files = _prediction_files(task)
    ap = chosen_first(evaluation.ap, config.eval.protocol)
    usable = len(files) - len(evaluation.failures)
    return [
        *metric_notes(evaluation.metrics),
        *accuracy_notes(ap, evaluation.reach, task.truth, files, task.model.spec),
        *expected_notes(config, expected_ap(config, ap), usable),
    ]


def _device_entries(report: EvaluationReport) -> list[dict[str, Any]]:
    timeline = report.timeline
    return [
        device_entry(name, one, timeline.seconds, timeline.started_at)
        for name, one in sorted(report.devices.items())
    ]


def _decoded(report: EvaluationReport) -> int:
    """Picture files that were read and decoded in this run, wherever that was."""
    return sum(device.decoded for device in report.devices.values())


def _peak_memory(report: EvaluationReport) -> dict[str, float]:
    """Most resident memory of the driver, the reducer and each device, megabytes."""
    peaks = {"driver": peak_memory(), "reducer": report.evaluation.peak_memory}
    peaks |= {name: one.peak_memory for name, one in sorted(report.devices.items())}
    return {name: peak / 1e6 for name, peak in peaks.items()}


def _notes(
    config: Config, task: EvaluationTask, report: EvaluationReport, supply: PictureSupply
) -> list[str]:
    manifest = task.manifest
    # In several passes these notes count a picture once in every pass.
    pictures = "pictures" if manifest.passes == 1 else "pictures, each counted in every pass,"
    inferred = sum(device.pictures for device in report.devices.values())
    kept = max(0, inferred - _decoded(report))
    remarks: list[tuple[object, str]] = [
        (
            config.dataset.kind == "sample" and not task.model.is_simulated,
            "this is the embedded sample set, a check that everything works; its AP says nothing "
            "about WIDER FACE (for that: dataset=wider_val dataset.root=... "
            "dataset.ground_truth=...)",
        ),
        (
            manifest.absent,
            f"{manifest.absent} pictures of the ground truth are not in dataset.root; "
            "their faces do not count",
        ),
        (
            manifest.unknown,
            f"{manifest.unknown} pictures in dataset.root are not in the ground truth; left out",
        ),
        (
            report.resumed,
            f"{report.resumed} {pictures} were done by an earlier, interrupted run",
        ),
        (
            kept,
            f"{kept} {pictures} were not decoded again but taken from Ray's object store "
            "(preprocess.cache)",
        ),
        *((True, note) for note in event_notes([*report.evaluation.events, *report.events])),
        *((True, note) for note in damage_notes(config, report.evaluation.damaged)),
        (report.evaluation.failures, "failed pictures are left out of the AP"),
    ]
    presets = preset_notes(config) if task.model.is_simulated else []
    return presets + [text for holds, text in remarks if holds]


def preset_notes(config: Config) -> list[str]:
    """A note that a simulated chip's published times are those of another input size."""
    rows, columns = PUBLISHED_INPUT
    has_published_size = (config.model.height, config.model.width) == PUBLISHED_INPUT
    if config.backend.latency_ms is not None or has_published_size:
        return []
    return [
        f"the times of backend.preset={config.backend.preset} are those of an input of "
        f"{rows}x{columns}, whatever this run's; set backend.latency_ms for another"
    ]

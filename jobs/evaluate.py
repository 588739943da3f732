"""`job=evaluate`: the AP and the throughput of a model on a data set, on many devices."""

from __future__ import annotations

import shutil
from pathlib import Path

from cfdist import execution, inputs
from cfdist.coco import COCO, write_coco
from cfdist.config import Config
from cfdist.detections import read_detections
from cfdist.distributed.journal import check_identity
from cfdist.distributed.rounds import EvaluationTask, evaluate_manifest
from cfdist.files import JOURNAL, PARQUET, PREDICTIONS, disk_as_user_error
from cfdist.machine import reset_peak_memory
from cfdist.report import screen
from cfdist.report.evaluation import evaluation_evidence, evaluation_results
from cfdist.report.page.run import write_run_report
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Phases, check_gate
from cfdist.widerface.manifest import SUFFIX
from cfdist.widerface.own import OwnMetrics


def main(config: Config, output: Path, started: float) -> int:
    """Evaluate, show and write the results; returns the exit code."""
    phases = Phases(started)
    phases.end("imports")
    reset_peak_memory()
    check_gate(config)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth).repeated(config.dataset.repeat)
    model = execution.find_model(config, output)  # may measure which runtime is the fastest
    identity = execution.run_identity(model, manifest, config.eval.protocol)
    check_identity(output / JOURNAL, identity)
    OwnMetrics(config.eval.metrics)  # refused now if one is not there
    phases.end("checks")
    with execution.start(config, [model], feeds_pictures=True, pictures=manifest.pictures) as there:
        phases.end("ray")
        screen.print_plan(config, there, manifest)
        supply = execution.supply_pictures(config, there, manifest)
        style, make_work, metrics = config.eval.protocol, supply.make_work, config.eval.metrics
        task = EvaluationTask(
            *(manifest, truth, there.models[0], there.plan, output, identity, style, make_work),
            metrics=tuple(metrics),
        )
        with PictureProgress(len(manifest.items), output) as progress:
            report = evaluate_manifest(task, progress.listener(phases, model))
        phases.end("run")
    phases.end("shut_down")
    results = evaluation_results(config, task, report, supply, phases)
    if model.is_simulated:
        # These files would look like those of a detector that finds no faces.
        shutil.rmtree(output / PREDICTIONS)
        (output / PARQUET).unlink()
    elif config.coco:
        with disk_as_user_error(output):
            write_coco(output / COCO, read_detections(output / PARQUET), SUFFIX)
    exit_code = screen.finish(results, output)
    # Now: a run that is killed before this goes on, and one whose journal stays is finished.
    shutil.rmtree(output / JOURNAL, ignore_errors=True)
    write_run_report(results, output, evaluation_evidence(config, task, report.evaluation))
    return exit_code

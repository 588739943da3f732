"""What job=evaluate does with pictures, for its rate: the files are thrown away."""

from __future__ import annotations

import shutil
from dataclasses import replace
from math import ceil
from pathlib import Path

from cfdist import execution
from cfdist.config import Config
from cfdist.distributed.rounds import (
    EvaluationReport,
    EvaluationTask,
    Listener,
    evaluate_manifest,
)
from cfdist.execution import Execution
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest


def evaluate_and_forget(
    config: Config,
    there: Execution,
    data: tuple[GroundTruth, Manifest],
    pictures: int,
    scratch: Path,
    listener: Listener,
) -> tuple[EvaluationTask, EvaluationReport]:
    """Evaluate the first pictures, in several passes if there are fewer.

    Each device reads every picture in every pass.

    Args:
        config: The run's.
        there: The model, and the devices that run it.
        data: The ground truth, and the pictures, each once.
        pictures: How many, over all passes.
        scratch: A folder for prediction files and journal, which is removed.
        listener: Learns how it goes on.
    """
    truth, manifest = data
    model, style = there.models[0], config.eval.protocol
    passes = manifest.repeated(ceil(pictures / len(manifest.items)))
    passes = replace(passes, items=passes.items[:pictures])
    identity = execution.run_identity(model, passes, style)
    make_work = execution.device_work(config, there)
    task = EvaluationTask(passes, truth, model, there.plan, scratch, identity, style, make_work)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        return task, evaluate_manifest(task, listener)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

"""An evaluation: rounds over what the journal does not hold yet, until it holds everything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.devices.base import DeviceReport
from cfdist.devices.detector import Detector
from cfdist.distributed.failures import user_error
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.pool import ChunkReport, DevicePool, kill_actors
from cfdist.distributed.reducer import Evaluation, ReducerActor
from cfdist.distributed.timeline import Timeline
from cfdist.distributed.work import Work
from cfdist.machine import process_times, seconds_between
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest, WorkItem

log = logging.getLogger(__name__)

REDUCER = "reducer"

# What a round could not do is tried again, this often.
MAX_ROUNDS = 3

MakeWork = Callable[[Sequence[WorkItem]], Work]


@dataclass(frozen=True)
class EvaluationTask:
    """What there is to evaluate.

    Attributes:
        manifest: The pictures.
        truth: Their ground truth.
        model: What the devices run.
        plan: The devices.
        output: The run's folder.
        identity: What the run is: what the journal of the same run holds is done already.
        style: How boxes are written and scored, a key of `cfdist.widerface.predictions.STYLES`.
        make_work: Makes the work of some of the manifest's items.
    """

    manifest: Manifest
    truth: GroundTruth
    model: BackendModel
    plan: DevicePlan
    output: Path
    identity: RunIdentity
    style: str
    make_work: MakeWork


@dataclass(frozen=True)
class Listener:
    """Who is told how an evaluation goes on.

    Attributes:
        on_ready: Called once the devices are warm, with the number of items done already.
        on_done: Called for each chunk that is on disk.
    """

    on_ready: Callable[[int], None]
    on_done: Callable[[ChunkReport], None]


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation gives back.

    Attributes:
        evaluation: APs and failures.
        devices: Device name -> its report.
        timeline: The pictures' progress.
        resumed: Work items that an earlier, interrupted run had done.
        lost: Names of devices that died and were replaced, one entry each time.
        cpu_seconds: Processor time from the first to the last picture of this process and all
            that it has started. A Ray cluster that ran before is not in it.
    """

    evaluation: Evaluation
    devices: dict[str, DeviceReport]
    timeline: Timeline
    resumed: int
    lost: tuple[str, ...]
    cpu_seconds: float


def evaluate_manifest(task: EvaluationTask, listener: Listener) -> EvaluationReport:
    """Run the pictures through the devices until each is in the journal, and evaluate.

    Raises:
        UserError: a device refuses the model or its work.
        Exception: what the devices ran into, when a round brought nothing forward.
    """
    import ray

    plan = task.plan
    options = {"num_cpus": 0, "max_concurrency": plan.count * plan.max_in_flight + 1}
    reducer = ray.remote(ReducerActor).options(name=REDUCER, **options).remote()
    pool = _device_pool(task, reducer)
    try:
        return _evaluate(task, listener, pool, reducer)
    except ray.exceptions.RayError as error:
        raise user_error(error) from error
    finally:
        pool.kill()
        kill_actors({REDUCER: reducer})


def _device_pool(task: EvaluationTask, reducer: Any) -> DevicePool[ChunkReport]:
    model, plan = task.model, task.plan

    def make_device(number: int) -> Detector:
        settings = DeviceSettings(plan.threads, plan.streams, number=number)
        return Detector(model, settings, plan.readers)

    return DevicePool(plan, make_device, model.spec.batch, model.capabilities.group, reducer)


def _evaluate(
    task: EvaluationTask, listener: Listener, pool: DevicePool[ChunkReport], reducer: Any
) -> EvaluationReport:
    import ray

    order = tuple(item.id for item in task.manifest.pictures)
    truth = {id: task.truth[id] for id in order}
    opened = reducer.open.remote(truth, order, task.output, task.identity, task.style)
    pool.begin()
    done = ray.get(opened)
    work = task.make_work(_missing(task.manifest, done))
    pool.start()
    listener.on_ready(len(done))
    timeline = Timeline(task.plan.streams)

    def advance(device: str | None, report: ChunkReport) -> None:
        timeline.add(device, report.done + report.failed)
        listener.on_done(report)

    cpu_before = process_times()
    timeline.started = time.perf_counter()
    _run_rounds(task, work, pool, reducer, advance)
    cpu_seconds = seconds_between(cpu_before, process_times())
    pool.close()
    evaluation = ray.get(reducer.finish.remote())
    return EvaluationReport(
        evaluation, pool.reports, timeline, len(done), tuple(pool.lost), cpu_seconds
    )


def _missing(manifest: Manifest, done: set[str]) -> list[WorkItem]:
    return [item for item in manifest.items if item.key not in done]


def _run_rounds(
    task: EvaluationTask,
    work: Work,
    pool: DevicePool[ChunkReport],
    reducer: Any,
    advance: Callable[[str | None, ChunkReport], None],
) -> None:
    """Rounds over what is missing until nothing is.

    Args:
        task: What there is to evaluate.
        work: What is missing now.
        pool: The devices.
        reducer: The actor that knows what is done.
        advance: Called for each chunk that is on disk, with the name of the device that did it.

    Raises:
        Exception: what stopped a round for good.
    """
    import ray

    left = work.count
    for round_number in range(1, MAX_ROUNDS + 1):
        if not left:
            return
        if round_number > 1:
            log.warning("round %d: %d pictures left", round_number, left)
            work = task.make_work(_missing(task.manifest, ray.get(reducer.done.remote())))
            pool.start()
        counted = 0

        def count(device: str, report: ChunkReport) -> None:
            nonlocal counted
            counted += report.done + report.failed
            advance(device, report)

        problems = pool.run_round(work, count)
        before, left = left, len(task.manifest.items) - ray.get(reducer.done_count.remote())
        # A device may have died between a chunk's delivery and its report.
        unreported = before - left - counted
        if unreported > 0:
            advance(None, ChunkReport(unreported, 0))
        if problems and (left == before or round_number == MAX_ROUNDS):
            raise problems[0]

"""Rounds over what is left, until nothing is; an evaluation leaves out what its journal holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from cfdist.backends.model import BackendModel
from cfdist.devices.base import ChunkReport, DeviceReport
from cfdist.devices.detector import Detector
from cfdist.distributed.failures import user_error
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.pool import Actor, DevicePool, kill_actors
from cfdist.distributed.reducer import Evaluation, Reducer
from cfdist.distributed.timeline import Timeline
from cfdist.distributed.work import Work
from cfdist.machine import ProcessTimes, process_times, seconds_between
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest, WorkItem

log = logging.getLogger(__name__)

REDUCER = "reducer"

# At most this many rounds; what a round could not do is tried again in the next one.
MAX_ROUNDS = 3

MakeWork = Callable[[Sequence[WorkItem]], Work]


class HasKeys(Protocol):
    """What a device returns for a chunk of work items."""

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the chunk's work items, failed ones included."""


Done = TypeVar("Done", bound=HasKeys)


def run_rounds(
    pool: DevicePool[Done],
    items: Sequence[WorkItem],
    make_work: MakeWork,
    on_ready: Callable[[], None],
    on_done: Callable[[str, Done], None],
) -> None:
    """Run work items through the devices of a pool until each is done.

    A chunk whose device dies before it reports is done again.

    Args:
        pool: The devices; they need not have been started.
        items: What there is to do.
        make_work: Makes the work of some of the items.
        on_ready: Called once the devices are warm.
        on_done: Called with the device's name and its result for each chunk.

    Raises:
        UserError: a device refuses the model or its work, or a block cannot be made.
        Exception: what the devices ran into, when a round brought nothing forward.
    """
    left = {item.key: item for item in items}

    def take_in(device: str, result: Done) -> None:
        for key in result.keys:
            del left[key]
        on_done(device, result)

    pool.begin()
    work = make_work(items)
    pool.start()
    on_ready()
    for number in range(1, MAX_ROUNDS + 1):
        before = len(left)
        problems = pool.run_round(work, take_in)
        if not left:
            return
        if len(left) == before or number == MAX_ROUNDS:
            raise problems[0]
        log.warning("round %d: %d pictures left", number + 1, len(left))
        work = make_work(list(left.values()))
        pool.start()


@dataclass(frozen=True)
class EvaluationTask:
    """What there is to evaluate.

    Attributes:
        manifest: The pictures.
        truth: Their ground truth.
        model: What the devices run.
        plan: The devices.
        output: The run's folder.
        identity: Names the run; pictures in a journal of the same run are done already.
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
    """Learns how an evaluation goes on.

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
        cpu_seconds: Processor time of this process and all that it has started, from the first to
            the last picture, without a Ray cluster that ran before.
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

    model, plan = task.model, task.plan
    reducer = _start_reducer(task)
    pool: DevicePool[ChunkReport] = DevicePool(
        plan,
        lambda settings: Detector(model, settings, plan.readers),
        model.spec.batch,
        model.capabilities.group,
        reducer,
    )
    timeline = Timeline(plan.streams)
    cpu_before: ProcessTimes = {}

    def on_ready() -> None:
        listener.on_ready(len(done))
        cpu_before.update(process_times())
        timeline.started = time.perf_counter()

    def on_done(device: str, report: ChunkReport) -> None:
        timeline.add(device, len(report.keys))
        listener.on_done(report)

    try:
        with pool:
            opened = reducer.open.remote()
            pool.begin()
            done = ray.get(opened)
            missing = [item for item in task.manifest.items if item.key not in done]
            run_rounds(pool, missing, task.make_work, on_ready, on_done)
            cpu_seconds = seconds_between(cpu_before, process_times())
            pool.close()
            evaluation = ray.get(reducer.finish.remote())
    except ray.exceptions.RayError as error:
        raise user_error(error) from error
    finally:
        kill_actors({REDUCER: reducer})
    return EvaluationReport(
        evaluation, pool.reports, timeline, len(done), tuple(pool.lost), cpu_seconds
    )


def _start_reducer(task: EvaluationTask) -> Actor:
    import ray

    order = tuple(item.id for item in task.manifest.pictures)
    truth = {id: task.truth[id] for id in order}
    # As many calls at once as there are chunks in flight.
    calls = task.plan.count * task.plan.max_in_flight
    actor = ray.remote(Reducer).options(name=REDUCER, num_cpus=0, max_concurrency=calls)
    return actor.remote(truth, order, task.output, task.identity, task.style)

"""Rounds over what is left, until nothing is; an evaluation leaves out what its journal holds."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cfdist.backends.model import BackendModel
from cfdist.detections import Detections, packed, to_arrow
from cfdist.devices.base import ChunkReport, DeviceReport
from cfdist.devices.detector import Detector
from cfdist.distributed.actors import kill_actors, leave_actors, take_actor
from cfdist.distributed.dealing import deal_out
from cfdist.distributed.device_actor import Result
from cfdist.distributed.events import Event
from cfdist.distributed.failures import is_death, reducer_lost, user_error
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.pool import REDUCER, DevicePool
from cfdist.distributed.reducer import Evaluation
from cfdist.distributed.watch import ReducerActor, ReducerWatch, reducer_options
from cfdist.distributed.work import Work, load_ray_data
from cfdist.errors import ExitCode, StoppedError
from cfdist.machine import ProcessTimes, process_times, seconds_between
from cfdist.monitoring.monitor import Monitor
from cfdist.preprocess import is_readable
from cfdist.storage import lost_source, source_of
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest, WorkItem

log = logging.getLogger(__name__)

# At most this many rounds; there is a second one if blocks of the work were lost with their node.
MAX_ROUNDS = 3

# A steady rate needs at least this much time, seconds.
MIN_STEADY_SECONDS = 1.0

MakeWork = Callable[[Sequence[WorkItem]], Work]


def run_rounds(
    pool: DevicePool[Result],
    items: Sequence[WorkItem],
    make_work: MakeWork,
    on_ready: Callable[[], None],
    on_done: Callable[[str, Result], Iterable[str]],
    on_given_up: Callable[[dict[str, str]], None],
) -> None:
    """Run work items through the devices of a pool until each is done or has failed.

    Args:
        pool: The devices.
        items: The work items.
        make_work: Makes the work of some of them.
        on_ready: Called once devices are warm.
        on_done: Called with the device's name and its result for each chunk; returns the keys of
            the work items that are done with it.
        on_given_up: Called at the end with key -> reason of the work items on which devices failed.

    Raises:
        UserError: the devices refuse the model or the work, or a block cannot be made.
        StoppedError: no device is left, the folders or stores of all pictures are gone, or a
            picture failed with on_error=fail.
        Exception: blocks of the work were lost again and again.
    """
    left = {item.key: item for item in items}
    sources = {source_of(item.path): item.path for item in items}

    def find_readable(key: str) -> WorkItem | None:
        item = left[key]
        if is_readable(item.path):
            return item
        lost = lost_source(item.path)
        others = (path for its, path in sources.items() if its != source_of(item.path))
        if lost and all(map(lost_source, others)):  # no picture has failed, and all would
            raise StoppedError(f"the pictures cannot be read any more ({lost})", ExitCode.INTERNAL)
        return None

    pool.find_readable = find_readable

    def take_in(device: str, result: Result) -> None:
        keys = (*on_done(device, result),)
        for key in keys:
            del left[key]
        pool.monitor.add(len(keys), len(getattr(result, "failures", ())), device)

    todo = items
    pool.begin()
    for number in range(1, MAX_ROUNDS + 1):
        with contextlib.closing(make_work(todo)) as work:
            pool.start()
            if number == 1:
                on_ready()
            keys = [item.key for item in todo] if work.keys is None else work.keys
            problem = deal_out(pool, work, keys, take_in)
        given_up = {key: reason for key, reason in pool.retries.given_up.items() if key in left}
        if len(given_up) == len(left):
            if given_up:
                on_given_up(given_up)
                pool.monitor.add(len(given_up), len(given_up))
            return
        todo = [item for key, item in left.items() if key not in given_up]
        if number == MAX_ROUNDS:
            raise problem or RuntimeError(f"{len(todo)} pictures are neither done nor given up")
        log.warning("round %d: %d pictures left", number + 1, len(todo))


@dataclass(frozen=True)
class EvaluationTask:
    """What there is to evaluate.

    Attributes:
        identity: Names the run; pictures in a journal of the same run are done already.
        style: How boxes are written and scored, a key of `cfdist.widerface.predictions.STYLES`.
        make_work: Makes the work of some of the manifest's items.
        metrics: Further ones, see `cfdist.widerface.own.OwnMetrics`.
    """

    manifest: Manifest
    truth: GroundTruth
    model: BackendModel
    plan: DevicePlan
    output: Path
    identity: RunIdentity
    style: str
    make_work: MakeWork
    metrics: tuple[str, ...] = ()

    @property
    def reduced(self) -> tuple[object, ...]:
        """The arguments of `Reducer.open`."""
        order = tuple(item.id for item in self.manifest.pictures)
        truth = {id: self.truth[id] for id in order}
        return truth, order, self.output, self.identity, self.style, self.metrics


@dataclass(frozen=True)
class Listener:
    """Learns how an evaluation goes on.

    Attributes:
        on_ready: Called once the devices are warm, with the number of items done already, and of
            those among them that have failed.
        monitor: Learns of each chunk that is on disk, and of the devices.
    """

    on_ready: Callable[[int, int], None]
    monitor: Monitor


@dataclass
class Timeline:
    """When chunks were finished, for rates.

    Attributes:
        streams: Chunks that a device infers at the same time.
        started: When the first work was handed out, seconds on the monotonic clock.
        points: (seconds on the same clock, pictures with a result until then), one a chunk; failed
            pictures cost little time, and no rate counts them.
        chunks: Device name -> (seconds on the same clock, such pictures) of each of its chunks.
        started_at: `started` in seconds since the epoch.
    """

    streams: int
    started: float = 0.0
    points: list[tuple[float, int]] = field(default_factory=list)
    chunks: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    started_at: float = 0.0

    def add(self, device: str, pictures: int) -> None:
        """Note that a device has finished a chunk now, with results for so many pictures."""
        now = time.perf_counter()
        total = self.points[-1][1] if self.points else 0
        self.points.append((now, total + pictures))
        self.chunks.setdefault(device, []).append((now, pictures))

    @property
    def seconds(self) -> float:
        """From the first work handed out to the last picture finished."""
        return self.points[-1][0] - self.started if self.points else 0.0

    @property
    def first_seconds(self) -> float | None:
        """From the first work handed out to the first chunk finished."""
        return self.points[0][0] - self.started if self.points else None

    @property
    def steady_rate(self) -> float | None:
        """Pictures a second, without the first chunk of each stream of each device.

        `None` if the rest is less than half of the pictures, takes less than a second, or is no
        more than one chunk a device, whose time is as much its start and end as its work.

        A device's time counts from the mean end of its first chunks to the end of the run, so that
        no work counts without its time.
        """
        if not self.points:
            return None
        end, total = self.points[-1]
        rate, pictures, latest, spare = 0.0, 0, self.started, 0
        for chunks in self.chunks.values():
            first, rest = chunks[: self.streams], chunks[self.streams :]
            start = sum(seconds for seconds, _ in first) / len(first)
            done = sum(count for _, count in rest)
            if done:
                rate += done / (end - start)
                pictures += done
                spare += len(rest) - 1
                latest = max(latest, start)
        if pictures < total / 2 or end - latest < MIN_STEADY_SECONDS or not spare:
            return None
        return rate


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation gives back.

    Attributes:
        devices: Device name -> its report.
        resumed: Work items that an earlier, interrupted run had done.
        events: What happened to the devices and pictures.
        cpu_seconds: Processor time of this process and all that it has started, from the first to
            the last picture, without a Ray cluster that ran before.
    """

    evaluation: Evaluation
    devices: dict[str, DeviceReport]
    timeline: Timeline
    resumed: int
    events: Sequence[Event]
    cpu_seconds: float


def evaluate_manifest(task: EvaluationTask, listener: Listener) -> EvaluationReport:
    """Run the pictures through the devices until each is in the journal, and evaluate.

    Raises:
        UserError: a device refuses the model or its work.
        StoppedError: no device is left, or a picture failed with on_error=fail.
    """
    import ray

    model, plan = task.model, task.plan
    # As many calls at once as there are chunks in flight.
    options = reducer_options(plan.count * plan.max_in_flight)
    reducer = take_actor(REDUCER, ReducerActor, options)
    pool: DevicePool[ChunkReport] = DevicePool(
        plan,
        lambda settings: Detector(model, settings, plan.readers),
        model.spec.batch,
        model.capabilities.group,
        reducer,
    )
    pool.monitor = listener.monitor
    timeline = Timeline(plan.streams)
    cpu_before: ProcessTimes = {}

    def on_ready() -> None:
        listener.on_ready(len(begun.done), begun.failed)
        cpu_before.update(process_times())
        timeline.started, timeline.started_at = time.perf_counter(), time.time()

    def on_done(device: str, report: ChunkReport) -> Iterable[str]:
        timeline.add(device, len(report.done))
        return report.keys

    def give_up(given_up: dict[str, str]) -> None:
        failed = [Detections(key, error=reason) for key, reason in given_up.items()]
        ray.get(reducer.add.remote(packed(to_arrow(failed))))

    try:
        with pool, ReducerWatch(reducer, task.reduced, pool.events) as watch:
            pool.begin()
            load_ray_data(len(task.manifest.items))  # while they load and the reducer opens
            begun = watch.opened()
            missing = [item for item in task.manifest.items if item.key not in begun.done]
            run_rounds(pool, missing, task.make_work, on_ready, on_done, give_up)
            cpu_seconds = seconds_between(cpu_before, process_times())
            pool.close()
            evaluation = ray.get(reducer.finish.options(name="AP").remote())
            listener.monitor.note_ap(evaluation.ap)
    except BaseException as error:
        kill_actors({REDUCER: reducer})
        problem = _of_the_reducer(error)
        if problem is not error:  # an error is no cause of its own
            raise problem from error
        raise
    leave_actors({REDUCER: reducer}, ReducerActor, options)
    resumed = len(begun.done)
    return EvaluationReport(evaluation, pool.reports, timeline, resumed, pool.events, cpu_seconds)


def _of_the_reducer(error: BaseException) -> BaseException:
    """What Ray's error means here: a device's death ends no run, so this one is the reducer's."""
    import ray

    if not isinstance(error, ray.exceptions.RayError):
        return error
    return reducer_lost() if is_death(error) else user_error(error)

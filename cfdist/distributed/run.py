"""A run: rounds over what the journal does not hold yet, each handing out work on demand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfdist import backends
from cfdist.backends.base import DeviceSettings
from cfdist.cpu_time import process_times, seconds_between
from cfdist.distributed.actors import (
    REDUCER,
    ReducerActor,
    kill_actors,
    leave_actors,
    take_actor,
)
from cfdist.distributed.chunks import Work
from cfdist.distributed.cluster import DevicePlan, user_error
from cfdist.distributed.device import ChunkReport, Device, DeviceReport
from cfdist.distributed.device_pool import DevicePool
from cfdist.distributed.picture_cache import PictureCache
from cfdist.distributed.reducer import Evaluation
from cfdist.model import ModelSpec
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest

log = logging.getLogger(__name__)

# What a round could not do is tried again, so often.
MAX_ROUNDS = 3

MIN_STEADY_SECONDS = 1.0


@dataclass
class Timeline:
    """When chunks were finished, for rates.

    Attributes:
        slots: Chunks that a device infers at the same time.
        started: When the first work was handed out, seconds on the monotonic clock.
        points: (seconds on the same clock, pictures finished so far), one a chunk.
        chunks: Device name -> (seconds on the same clock, pictures) of each of its chunks.
    """

    slots: int
    started: float = 0.0
    points: list[tuple[float, int]] = field(default_factory=list)
    chunks: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def add(self, device: str | None, pictures: int) -> None:
        """Note that a device has finished a chunk now; `None`: which one is not known."""
        now = time.perf_counter()
        total = self.points[-1][1] if self.points else 0
        self.points.append((now, total + pictures))
        if device is not None:
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
        """Pictures a second without each device's start: its first chunk in each slot.

        `None` where less than half of the pictures, or less than a second, is left then.

        Each device's time counts from the end of its own first chunks, the mean of them, to the
        run's end, so that no work counts without its time.
        """
        if not self.points:
            return None
        end, total = self.points[-1]
        rate, pictures, latest = 0.0, 0, self.started
        for chunks in self.chunks.values():
            first, rest = chunks[: self.slots], chunks[self.slots :]
            start = sum(seconds for seconds, _ in first) / len(first)
            done = sum(count for _, count in rest)
            if done:
                rate += done / (end - start)
                pictures += done
                latest = max(latest, start)
        if pictures < total / 2 or end - latest < MIN_STEADY_SECONDS:
            return None
        return rate


@dataclass(frozen=True)
class Outcome:
    """What a run gives back.

    Attributes:
        evaluation: APs and failures.
        devices: Device name -> its report.
        timeline: The pictures' progress.
        resumed: Pictures that an earlier, interrupted run had done.
        lost: Names of devices that died and were replaced, one entry each time.
        cpu_seconds: Processor time from the first to the last picture, of this process and all
            that it has started: Ray's too, unless the cluster was there already.
    """

    evaluation: Evaluation
    devices: dict[str, DeviceReport]
    timeline: Timeline
    resumed: int
    lost: tuple[str, ...]
    cpu_seconds: float


def evaluate_manifest(
    manifest: Manifest,
    truth: GroundTruth,
    *,
    backend: str,
    spec: ModelSpec,
    options: dict,
    plan: DevicePlan,
    output: Path,
    fingerprint: str,
    style: str,
    on_ready: Callable[[int], None],
    on_done: Callable[[ChunkReport], None],
    pictures: PictureCache | None = None,
) -> Outcome:
    """Run the pictures through the devices until each is in the journal, and evaluate.

    Args:
        manifest: The pictures.
        truth: Their ground truth.
        backend: A resolved backend.
        spec: The model.
        options: The backend's options.
        plan: The devices.
        output: The run's folder.
        fingerprint: Identifies the run: what is in the folder's journal under it is done already.
        style: How boxes are written and scored, a key of `cfdist.widerface.predictions.STYLES`.
        on_ready: Called once the devices are warm, with the number of items done already.
        on_done: Called for each chunk that is on disk.
        pictures: Where letterboxed pictures are kept.

    Raises:
        Exception: what the devices ran into, when a round brought nothing forward.
    """
    import ray

    order = tuple(item.id for item in manifest.pictures)
    reducer_options = {"num_cpus": 0, "max_concurrency": plan.count * plan.window + 1}
    reducer = take_actor(REDUCER, ReducerActor, reducer_options)
    backend_class = backends.backend_class(backend)
    settings = DeviceSettings(plan.threads, plan.slots, options=options)
    pool = DevicePool(
        plan,
        Device,
        (backend, spec, settings, plan.feeders),
        spec.batch,
        group=backend_class.capabilities.group,
        reducer=reducer,
        pictures=pictures,
    )
    timeline = Timeline(plan.slots)

    def advance(device: str | None, report: ChunkReport) -> None:
        timeline.add(device, report.done + report.failed)
        on_done(report)

    is_whole = False
    try:
        subset = {id: truth[id] for id in order}
        opened = reducer.open.remote(subset, order, output, fingerprint, style)
        pool.begin()
        done = ray.get(opened)
        work = Work([item for item in manifest.items if item.key not in done])
        pool.start()
        on_ready(len(done))
        cpu_before = process_times()
        timeline.started = time.perf_counter()
        _run_rounds(manifest, work, pool, reducer, advance)
        cpu_seconds = seconds_between(cpu_before, process_times())
        pool.close()
        evaluation = ray.get(reducer.finish.remote())
        is_whole = True
    except ray.exceptions.OutOfMemoryError as error:
        raise user_error(error) from error
    finally:
        if is_whole:
            pool.release()
            leave_actors({REDUCER: reducer}, ReducerActor, reducer_options)
        else:
            pool.kill()
            kill_actors({REDUCER: reducer})
    return Outcome(evaluation, pool.reports, timeline, len(done), tuple(pool.lost), cpu_seconds)


def _run_rounds(
    manifest: Manifest,
    work: Work,
    pool: DevicePool,
    reducer: Any,
    advance: Callable[[str | None, ChunkReport], None],
) -> None:
    """Rounds over what is missing until nothing is; raises what stopped a round for good.

    Args:
        manifest: The pictures.
        work: What is missing now.
        pool: The devices.
        reducer: The actor that knows what is done.
        advance: Called for each chunk that is on disk, with the device that did it.
    """
    import ray

    left = work.count
    for round_number in range(1, MAX_ROUNDS + 1):
        if not left:
            return
        if round_number > 1:
            log.warning("round %d: %d pictures left", round_number, left)
            done = ray.get(reducer.done.remote())
            work = Work([item for item in manifest.items if item.key not in done])
            pool.start()
        counted = 0

        def count(device: str, report: ChunkReport) -> None:
            nonlocal counted
            counted += report.done + report.failed
            advance(device, report)

        problems = pool.run_round(work, count)
        before, left = left, len(manifest.items) - ray.get(reducer.done_count.remote())
        # A device may have died between a chunk's delivery and its report.
        unreported = before - left - counted
        if unreported > 0:
            advance(None, ChunkReport(unreported, 0))
        if problems and (left == before or round_number == MAX_ROUNDS):
            raise problems[0]

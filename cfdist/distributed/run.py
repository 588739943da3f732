"""A run: rounds over what the journal does not hold yet, each handing out work on demand."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from cfdist import backends
from cfdist.backends.base import DeviceSettings
from cfdist.distributed.cluster import ACCELERATOR_RESOURCE, DevicePlan, user_error
from cfdist.distributed.device import ChunkReport, Device, DeviceReport
from cfdist.distributed.reducer import Evaluation, Reducer
from cfdist.model import ModelSpec
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest, WorkItem

log = logging.getLogger(__name__)

# Ray takes a fraction of a millisecond a call: small batches travel together.
MIN_CHUNK = 8
# Chunks a device holds beyond those in inference: one being read, one on its way out.
AHEAD = 2
# What a round could not do is tried again, so often.
MAX_ROUNDS = 3
# A device that dies is started again at once, so often in a run, all devices together.
MAX_RESTARTS = 3

MIN_STEADY_SECONDS = 1.0

REDUCER = "reducer"


def chunk_of(batch: int, group: int) -> int:
    """Pictures that travel together: a whole number of batches, at least `group` of them."""
    return batch * max(group, ceil(MIN_CHUNK / batch))


@dataclass
class Timeline:
    """When chunks were finished, for rates.

    Attributes:
        lanes: Chunks that are inferred at the same time, over all devices.
        started: When the first work was handed out, seconds on the monotonic clock.
        points: (seconds on the same clock, pictures finished so far), one a chunk.
    """

    lanes: int
    started: float = 0.0
    points: list[tuple[float, int]] = field(default_factory=list)

    def add(self, pictures: int) -> None:
        """Note that a chunk of so many pictures is finished now."""
        total = self.points[-1][1] if self.points else 0
        self.points.append((time.perf_counter(), total + pictures))

    @property
    def seconds(self) -> float:
        """From the first work handed out to the last picture finished."""
        return self.points[-1][0] - self.started if self.points else 0.0

    @property
    def steady_rate(self) -> float | None:
        """Pictures a second once every lane has finished a chunk.

        `None` where less than half of the pictures, or less than a second, is left then.

        The first chunk of each lane is left out whole: all of them end at about the same time,
        so that counting from the first one's end would count the others' work without its time.
        """
        if len(self.points) <= self.lanes:
            return None
        (first_time, first), (last_time, last) = self.points[self.lanes - 1], self.points[-1]
        seconds = last_time - first_time
        if last - first < last / 2 or seconds < MIN_STEADY_SECONDS:
            return None
        return (last - first) / seconds


@dataclass(frozen=True)
class Outcome:
    """What a run gives back.

    Attributes:
        evaluation: APs and failures.
        devices: Device name -> its report.
        timeline: The pictures' progress.
        resumed: Pictures that an earlier, interrupted run had done.
        ready_at: Wall clock when the devices were ready for their first picture.
        lost: Names of devices that died and were replaced, one entry each time.
    """

    evaluation: Evaluation
    devices: dict[str, DeviceReport]
    timeline: Timeline
    resumed: int
    ready_at: float
    lost: tuple[str, ...]


class DevicePool:
    """The named device actors of a run and the chunks they are working on."""

    def __init__(
        self,
        plan: DevicePlan,
        device_class: type,
        arguments: tuple,
        chunk: int,
        *,
        has_fixed_batch: bool,
        reducer=None,
    ) -> None:
        """Plan the actors; `start` starts them.

        Args:
            plan: How many, and what each gets.
            device_class: `Device` or one with its methods.
            arguments: What each is made with.
            chunk: Pictures that travel together.
            has_fixed_batch: Chunks are not made smaller towards the end.
            reducer: The actor that takes the devices' results, if they go to one.
        """
        self._plan = plan
        self._make = (device_class, arguments)
        self._reducer = reducer
        self._has_fixed_batch = has_fixed_batch
        self.chunk = chunk
        self.actors: dict[str, object] = {}
        self.reports: dict[str, DeviceReport] = {}
        self.lost: list[str] = []

    def start(self) -> None:
        """Start the actors that are not there, and wait until each has run its model once.

        Raises:
            UserError: a device refuses the model.
            Exception: what else loading it ran into.
        """
        import ray

        names = [f"device:{i}" for i in range(self._plan.count)]
        fresh = [name for name in names if name not in self.actors]
        for name in fresh:
            self.actors[name] = self._start_actor(name)
        try:
            ray.get(
                [
                    self.actors[name].warm_up.remote(self.chunk, self._window, self._reducer)
                    for name in fresh
                ]
            )
        except ray.exceptions.RayTaskError as error:
            raise user_error(error) from None
        for name in fresh:
            self.reports.setdefault(name, DeviceReport())

    @property
    def _window(self) -> int:
        """Chunks a device holds at once, at most."""
        return self._plan.slots + AHEAD

    def _start_actor(self, name: str):
        import ray

        device_class, arguments = self._make
        resource = ACCELERATOR_RESOURCE[self._plan.kind]
        return (
            ray.remote(device_class)
            .options(
                name=name,
                num_cpus=self._plan.cpus,
                num_gpus=1 if resource == "GPU" else 0,
                resources={"NPU": 1} if resource == "NPU" else None,
                # One call more: `report` must not wait for the pipeline.
                max_concurrency=self._window + 1,
            )
            .remote(*arguments)
        )

    def run_round(
        self, items: Sequence[WorkItem], on_done: Callable[[Any], None]
    ) -> list[Exception]:
        """Hand the items out, each device as fast as it asks; returns what went wrong.

        What the devices' `process` returns for a chunk goes to `on_done`.

        Ray's `streaming_split` deals rows out evenly ahead of time, so that a run waits for its
        slowest device; here a device gets its next chunk when it finishes one.
        """
        import ray

        lanes = self._plan.count * self._plan.slots
        work = _Work(items, self.chunk, lanes, self._has_fixed_batch)
        running: dict[object, tuple[str, object]] = {}
        problems: list[Exception] = []
        alive = deque(self.actors)
        for _ in range(self._window):
            for name in alive:
                self._hand_out(name, work, running)
        while running:
            finished, _ = ray.wait(list(running), num_returns=1)
            for ref in finished:
                name, ref_actor = running.pop(ref)
                try:
                    on_done(ray.get(ref))
                except ray.exceptions.RayActorError as error:
                    problems.append(error)
                    if self._restart(name, ref_actor, error):
                        for _ in range(self._window - 1):
                            self._hand_out(name, work, running)
                except ray.exceptions.RayTaskError as error:
                    problems.append(user_error(error))
                    log.error("%s failed", name, exc_info=error)
                if name in self.actors:
                    self._hand_out(name, work, running)
        return problems

    def _hand_out(self, name: str, work: _Work, running: dict[object, tuple[str, object]]) -> None:
        chunk = work.next_chunk()
        if chunk:
            actor = self.actors[name]
            running[actor.process.remote(chunk)] = (name, actor)

    def _restart(self, name: str, actor: object, error: Exception) -> bool:
        """Replace a dead actor; says whether there is a new one that waits for work."""
        if self.actors.get(name) is not actor:
            return False  # another of its chunks has said so already
        log.warning("%s was lost: %s", name, error)
        self.lost.append(name)
        del self.actors[name]
        if len(self.lost) > MAX_RESTARTS:
            return False
        _wait_until_free([name])
        self.start()
        return True

    def close(self) -> None:
        """Collect the devices' reports and give the devices back."""
        import ray

        for name, actor in self.actors.items():
            try:
                self.reports[name] = ray.get(actor.report.remote())
                ray.get(actor.close.remote())
            except ray.exceptions.RayError as error:
                log.warning("%s gave no report: %s", name, error)

    def kill(self) -> None:
        """End the actors, whatever they are doing."""
        _kill(self.actors)
        self.actors = {}


class _Work:
    """Work items in chunks, from a Ray Dataset that is read as the devices ask."""

    def __init__(
        self, items: Sequence[WorkItem], chunk: int, lanes: int, has_fixed_batch: bool
    ) -> None:
        import ray.data

        # The screen has its own progress bar; these would write across it.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"id": item.id, "path": item.path, "size": item.size} for item in items]
        blocks = max(1, len(rows) // 1000)
        self._rows: Iterator[dict] = iter(
            ray.data.from_items(rows, override_num_blocks=blocks).iter_rows()
        )
        self._left = len(rows)
        self._chunk = chunk
        self._lanes = lanes
        self._has_fixed_batch = has_fixed_batch
        self._last_share: int | None = None

    def next_chunk(self) -> list[WorkItem]:
        """The next items; empty when there are none left."""
        size = self._chunk
        if not self._has_fixed_batch and self._left <= size * self._lanes:
            # The last chunks, one a lane, are of one size, so that all lanes end together.
            self._last_share = self._last_share or ceil(self._left / self._lanes)
            size = self._last_share
        size = min(size, self._left)
        self._left -= size
        return [WorkItem(**next(self._rows)) for _ in range(size)]


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
        on_ready: Called once the devices are warm, with the number of pictures done already.
        on_done: Called for each chunk that is on disk.

    Raises:
        Exception: what the devices ran into, when a round brought nothing forward.
    """
    import ray

    order = tuple(item.id for item in manifest.items)
    reducer = (
        ray.remote(Reducer)
        .options(name=REDUCER, num_cpus=0, max_concurrency=2 * plan.count + 1)
        .remote(spec, {id: truth[id] for id in order}, order, output, fingerprint, style)
    )
    backend_class = backends.backend_class(backend)
    settings = DeviceSettings(plan.threads, plan.slots, options=options)
    pool = DevicePool(
        plan,
        Device,
        (backend, spec, settings, plan.feeders),
        chunk_of(spec.batch, backend_class.group),
        has_fixed_batch=backend_class.has_fixed_batch,
        reducer=reducer,
    )
    timeline = Timeline(plan.count * plan.slots)

    def advance(report: ChunkReport) -> None:
        timeline.add(report.done + report.failed)
        on_done(report)

    try:
        pool.start()
        resumed = len(ray.get(reducer.done.remote()))
        on_ready(resumed)
        ready_at = time.time()
        timeline.started = time.perf_counter()
        _run_rounds(manifest, pool, reducer, advance)
        pool.close()
        evaluation = ray.get(reducer.finish.remote())
    finally:
        pool.kill()
        _kill({REDUCER: reducer})
    return Outcome(evaluation, pool.reports, timeline, resumed, ready_at, tuple(pool.lost))


def _run_rounds(
    manifest: Manifest, pool: DevicePool, reducer, advance: Callable[[ChunkReport], None]
) -> None:
    """Rounds over what is missing until nothing is; raises what stopped a round for good."""
    import ray

    done = ray.get(reducer.done.remote())
    for round_number in range(1, MAX_ROUNDS + 1):
        missing = [item for item in manifest.items if item.id not in done]
        if not missing:
            return
        if round_number > 1:
            log.warning("round %d: %d pictures left", round_number, len(missing))
            pool.start()
        counted = 0

        def count(report: ChunkReport) -> None:
            nonlocal counted
            counted += report.done + report.failed
            advance(report)

        problems = pool.run_round(missing, count)
        before, done = len(done), ray.get(reducer.done.remote())
        # A device may have died between a chunk's delivery and its report.
        reported = sum(1 for item in missing if item.id in done)
        unreported = reported - counted
        if unreported > 0:
            advance(ChunkReport(unreported, 0))
        if problems and (len(done) == before or round_number == MAX_ROUNDS):
            raise problems[0]


def _kill(actors: dict[str, object]) -> None:
    """End named actors and wait until their names are free for the next run."""
    import ray

    for actor in actors.values():
        ray.kill(actor)
    _wait_until_free(actors)


def _wait_until_free(names: Iterable[str]) -> None:
    """Ray gives an actor's name back some time after its end."""
    import ray

    deadline = time.monotonic() + 10
    while set(names) & set(ray.util.list_named_actors()) and time.monotonic() < deadline:
        time.sleep(0.02)

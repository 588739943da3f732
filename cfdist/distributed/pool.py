"""The device actors of a run, each given work as fast as it asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

import pyarrow as pa

from cfdist.detections import to_arrow
from cfdist.devices.base import ChunkReport, Device, DeviceReport, MakeDevice, device_name
from cfdist.devices.reader import Size
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, Place, settle
from cfdist.distributed.actors import (
    Actor,
    end_idle_actors,
    kill_actors,
    leave_actors,
    take_actor,
)
from cfdist.distributed.events import Events
from cfdist.distributed.failures import is_death, user_error
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.scheduler import Scheduler, chunk_for_rate
from cfdist.distributed.work import Slice, Work, letterbox_items, sources_of
from cfdist.errors import UserError
from cfdist.machine import reset_peak_memory
from cfdist.widerface.manifest import WorkItem

log = logging.getLogger(__name__)

# A device that dies is started again at once, this often in a run, all devices together.
MAX_RESTARTS = 3

# How often the driver looks for new blocks while none is there, seconds.
_POLL_SECONDS = 0.02

REDUCER = "reducer"  # the name of the reducer's actor

Ref = Any  # Ray's reference to an object
Result = TypeVar("Result")


class DeviceActor:
    """Hosts a device in a process of its own; in a sweep, one after the other."""

    def warm_up(self, device: Device, kind: str, reducer: Actor | None) -> Place:
        """Load a device, see `Device.warm_up`; its detections go to the reducer, if there is one.

        Returns:
            Where the device is.

        Raises:
            UserError: the device refuses the model, or Ray gave it no accelerator of its own.
        """
        self._place = settle(kind)
        reset_peak_memory()
        self._device = device
        self._reducer = reducer
        device.warm_up()
        to_arrow([])  # imports pyarrow before the first chunk
        return self._place

    def process(self, slices: Sequence[Slice], *blocks: pa.Table) -> Any:
        """`Device.process` for rows of blocks; a slice and its block have the same position.

        Returns:
            The device's result, or a `ChunkReport` once the reducer has the detections on disk.
        """
        found = self._device.process(sources_of(slices, blocks))
        if self._reducer is None:
            return found
        import ray

        ray.get(self._reducer.add.remote(to_arrow(found)))
        failures = tuple((one.id, one.error) for one in found if one.error is not None)
        return ChunkReport(tuple(one.id for one in found if one.error is None), failures)

    def letterbox(self, items: Sequence[WorkItem], size: Size, threads: int) -> pa.Table:
        """A block of the items' letterboxed pictures, see `letterbox_block`."""
        return letterbox_items(items, size, threads)

    def process_directly(self, chunk: Any) -> Any:
        """`Device.process` for a chunk that is not rows of blocks."""
        return self._device.process(chunk)

    def close(self) -> DeviceReport:
        """Give the device back; returns what it has done."""
        report = self._device.report()
        self._device.close()
        del self._device
        return replace(report, host=self._place.host, chip=self._place.chip)


@dataclass(frozen=True)
class _Handed:
    """The rows of a chunk that a device is working on, and the device's name and actor."""

    name: str
    actor: Actor
    slices: list[Slice]

    @property
    def size(self) -> int:
        """How many rows."""
        return sum(map(len, self.slices))


class DevicePool(Generic[Result]):
    """The device actors of a run; at the end of a `with` block they end, whatever they are doing.

    Attributes:
        least: Pictures that a device should be given at once.
        actors: Device name -> its actor.
        reports: Device name -> its last report.
        lost: Names of devices that died, one entry each time.
        events: What happened to the devices.
    """

    def __init__(
        self,
        plan: DevicePlan,
        make_device: MakeDevice,
        batch: int,
        group: int = 1,
        reducer: Actor | None = None,
    ) -> None:
        """Plan the actors; `start` starts them.

        A device should be given `group` batches at once. If there is a reducer actor, the devices
        send their detections to it.
        """
        self.plan = plan
        self._make_device = make_device
        self._reducer = reducer
        self.batch = batch
        self.least = batch * group
        self.actors: dict[str, Actor] = {}
        self.reports: dict[str, DeviceReport] = {}
        self.lost: list[str] = []
        self.events = Events()
        self._loading: dict[str, Ref] = {}
        self._places: dict[str, Place] = {}

    def __enter__(self) -> DevicePool[Result]:
        """The pool; its actors are not started yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the actors, whatever they are doing."""
        kill_actors(self.actors)
        self.actors = {}

    def begin(self) -> None:
        """Start the actors that are not there, and let each load its model."""
        names = [device_name(number) for number in range(self.plan.count)]
        end_idle_actors({*names, REDUCER})
        for number, name in enumerate(names):
            if name not in self.actors:
                device = self._make_device(self.plan.settings(number))
                self.actors[name] = take_actor(name, DeviceActor, self.plan.actor_options)
                self._loading[name] = self.actors[name].warm_up.remote(
                    device, self.plan.kind, self._reducer
                )

    def start(self) -> None:
        """Start the actors that are not there, and wait until each has run its model once.

        A device that dies meanwhile is started again. Once a run is under way it goes on without
        the devices that die too often.

        Raises:
            UserError: a device refuses the model, or two devices have one accelerator.
            Exception: what else loading it ran into.
        """
        import ray

        is_under_way = bool(self.reports)
        self.begin()
        while self._loading:
            name, ref = self._loading.popitem()
            try:
                place = cast(Place, ray.get(ref))
                self._note_place(name, place)
                self.reports.setdefault(name, DeviceReport(host=place.host, chip=place.chip))
            except ray.exceptions.RayError as error:
                if not is_death(error):
                    raise user_error(error) from None
                self._lose(name, error)
                if len(self.lost) <= MAX_RESTARTS:
                    self.begin()
                elif not (is_under_way and self.actors):
                    raise user_error(error) from None

    def run_round(self, work: Work, on_done: Callable[[str, Result], None]) -> list[Exception]:
        """Hand all work out, each device as fast as it asks.

        A device gets its next chunk when it finishes one. (Ray's `streaming_split` deals rows out
        evenly ahead of time, so that a run waits for its slowest device.) `on_done` is called with
        the device's name and what its `process` returned for a chunk.

        Returns:
            What went wrong.

        Raises:
            UserError: a device refuses its work, or a block cannot be made; the rest of the work
                would end in the same way.
        """
        try:
            return _Round(self, work, on_done).run()
        finally:
            work.close()

    def restart(self, name: str, actor: Actor, error: Exception) -> None:
        """Replace a dead actor, unless another of its chunks has had it replaced already."""
        if self.actors.get(name) is actor:
            self._lose(name, error)
            if len(self.lost) <= MAX_RESTARTS:
                self.start()

    def _note_place(self, name: str, place: Place) -> None:
        """Note where a device is; raise a `UserError` if another has the same accelerator."""
        for other, its_place in self._places.items():
            if place.chip is not None and place == its_place:
                what = f"{ACCELERATOR_RESOURCE[self.plan.kind]} {place.chip} of {place.host}"
                raise UserError(
                    f"{other} and {name} have the same accelerator, {what}; name each one once, "
                    "and on one node of the cluster only"
                )
        self._places[name] = place

    def _lose(self, name: str, error: Exception) -> None:
        log.warning("%s was lost: %s", name, error)
        self.lost.append(name)
        place = self._places.pop(name, None)
        host, chip = (place.host, place.chip) if place else (None, None)
        where = f" ({host}{f', chip {chip}' if chip else ''})" if host else ""
        self.events.note("device_lost", f"{name}{where} died", name, host, chip)
        # The actor may only be out of reach, and two cannot have one name.
        kill_actors({name: self.actors.pop(name)})

    def close(self) -> None:
        """Collect the devices' reports; a sweep's next run gets the processes, else they end."""
        import ray

        closed = {}
        for name, actor in self.actors.items():
            try:
                self.reports[name] = ray.get(actor.close.remote())
                closed[name] = actor
            except ray.exceptions.RayError as error:
                log.warning("%s gave no report: %s", name, error)
        leave_actors(closed, DeviceActor, self.plan.actor_options)
        self.actors = {name: self.actors[name] for name in self.actors.keys() - closed.keys()}
        self.__exit__()


class _Round(Generic[Result]):
    """One round of a pool over some work."""

    def __init__(
        self, pool: DevicePool[Result], work: Work, on_done: Callable[[str, Result], None]
    ) -> None:
        self._pool = pool
        self._work = work
        self._on_done = on_done
        self._size = pool.least
        self._scheduler = Scheduler(work, pool.actors, pool.plan.streams, pool.batch)
        self._running: dict[Ref, _Handed] = {}
        self._problems: list[Exception] = []
        self._started = time.perf_counter()
        self._finished = 0

    def run(self) -> list[Exception]:
        """See `DevicePool.run_round`."""
        import ray

        self._fill()
        refusal: UserError | None = None
        while self._running:
            timeout = _POLL_SECONDS if self._work.is_waiting else None
            ended, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
            for ref in ended:
                refusal = self._take_in(ref) or refusal
            if refusal is None:
                self._fill()
        if refusal is not None:
            raise refusal
        return self._problems

    def _take_in(self, ref: Ref) -> UserError | None:
        """Note a chunk that has ended; returns the error if the device refuses its work."""
        import ray

        handed = self._running.pop(ref)
        try:
            result = cast(Result, ray.get(ref))
        except ray.exceptions.RayError as error:
            return self._take_in_failure(handed, error)
        self._scheduler.give_back(handed.name, handed.size, is_finished=True)
        self._work.settle(handed.slices, is_finished=True)
        self._on_done(handed.name, result)
        self._finished += handed.size
        seconds = max(time.perf_counter() - self._started, 1e-3)
        rate = self._finished / seconds / self._pool.plan.count
        self._size = chunk_for_rate(self._pool.least, rate)
        return None

    def _take_in_failure(self, handed: _Handed, error: Exception) -> UserError | None:
        self._scheduler.give_back(handed.name, handed.size, is_finished=False)
        self._work.settle(handed.slices, is_finished=False)
        problem = user_error(error)
        self._problems.append(problem)
        log.error("%s failed", handed.name, exc_info=error)
        if is_death(error):
            self._pool.restart(handed.name, handed.actor, error)
            if handed.name not in self._pool.actors:
                self._scheduler.leave_out(handed.name)
            return None
        return problem if isinstance(problem, UserError) else None

    def _fill(self) -> None:
        """Hand out chunks, one to each device in turn; wait for work if nothing else is left."""
        if not self._running:
            self._work.wait()
        hungry = list(self._pool.actors)
        while hungry:
            hungry = [name for name in hungry if self._hand_out(name)]

    def _hand_out(self, name: str) -> bool:
        """Give a device a chunk, if it may hold one more and there is one for it."""
        actor = self._pool.actors[name]
        held = sum(handed.actor is actor for handed in self._running.values())
        if held == self._pool.plan.max_in_flight:
            return False
        slices = self._scheduler.next_chunk(name, self._size)
        if slices:
            letterbox = partial(actor.letterbox.remote, threads=self._pool.plan.readers)
            slices = self._work.letterbox(slices, letterbox)
            rows = [replace(one, block=None) for one in slices]
            ref = actor.process.remote(rows, *(one.block for one in slices))
            self._running[ref] = _Handed(name, actor, slices)
        return bool(slices)

"""The device actors of a run, each given work as fast as it asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cfdist.distributed.actors import (
    REDUCER,
    DeviceActor,
    end_other_actors,
    kill_actors,
    leave_actors,
    take_actor,
)
from cfdist.distributed.chunks import Shares, Work, chunk_for_rate, largest_chunk
from cfdist.distributed.cluster import ACCELERATOR_RESOURCE, DevicePlan, is_death, user_error
from cfdist.distributed.device import DeviceReport
from cfdist.distributed.picture_cache import PictureCache
from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem

log = logging.getLogger(__name__)

# A device that dies is started again at once, so often in a run, all devices together.
MAX_RESTARTS = 3


class DevicePool:
    """The device actors of a run and the chunks they are working on."""

    def __init__(
        self,
        plan: DevicePlan,
        device_class: type,
        arguments: tuple,
        batch: int,
        *,
        group: int = 1,
        reducer=None,
        pictures: PictureCache | None = None,
    ) -> None:
        """Plan the actors; `start` starts them.

        Args:
            plan: How many, and what each gets.
            device_class: `Device` or one with its methods.
            arguments: What each is made with.
            batch: Pictures a batch.
            group: Batches that a device should be given at once.
            reducer: The actor that takes the devices' results, if they go to one.
            pictures: Where letterboxed pictures are kept, for a `Device`.
        """
        self._plan = plan
        self._make = (device_class, arguments)
        self._reducer = reducer
        self._batch = batch
        self._least = batch * group
        self._pictures = pictures
        self.actors: dict[str, object] = {}
        self.reports: dict[str, DeviceReport] = {}
        self.lost: list[str] = []
        self._loading: dict[str, object] = {}

    def begin(self) -> None:
        """Start the actors that are not there, and let each load its model."""
        names = [f"device:{i}" for i in range(self._plan.count)]
        end_other_actors([*names, REDUCER])
        for name in names:
            if name not in self.actors:
                actor = take_actor(name, DeviceActor, self._actor_options())
                self.actors[name] = actor
                self._loading[name] = actor.load.remote(
                    *self._make, largest_chunk(self._least), self._plan.window, self._reducer
                )

    def start(self) -> None:
        """Start the actors that are not there, and wait until each has run its model once.

        One that dies meanwhile is started again. Once a run is under way it goes on without the
        ones that die too often.

        Raises:
            UserError: a device refuses the model.
            Exception: what else loading it ran into.
        """
        is_under_way = bool(self.reports)
        died = self._load()
        while died:
            for name, error in died.items():
                self._lose(name, error)
            if len(self.lost) > MAX_RESTARTS:
                if is_under_way and self.actors:
                    return
                raise user_error(next(iter(died.values())))
            died = self._load()

    def _load(self) -> dict[str, Exception]:
        """Start the actors that are not there; returns why some died before they were ready.

        Raises:
            UserError: a device refuses the model.
            Exception: what else loading it ran into.
        """
        import ray

        self.begin()
        loading, self._loading = self._loading, {}
        died = {}
        for name, ref in loading.items():
            try:
                ray.get(ref)
                self.reports.setdefault(name, DeviceReport())
            except ray.exceptions.RayError as error:
                if not is_death(error):
                    raise user_error(error) from None
                died[name] = error
        return died

    def _actor_options(self) -> dict[str, Any]:
        resource = ACCELERATOR_RESOURCE[self._plan.kind]
        return {
            "num_cpus": self._plan.cpus,
            "num_gpus": 1 if resource == "GPU" else 0,
            "resources": {"NPU": 1} if resource == "NPU" else None,
            # One call more: `report` must not wait for the pipeline.
            "max_concurrency": self._plan.window + 1,
        }

    def run_round(self, work: Work, on_done: Callable[[str, Any], None]) -> list[Exception]:
        """Hand work out, each device as fast as it asks; returns what went wrong.

        What the devices' `process` returns for a chunk goes to `on_done`, with the device's name.

        Ray's `streaming_split` deals rows out evenly ahead of time, so that a run waits for its
        slowest device; here a device gets its next chunk when it finishes one.

        Raises:
            UserError: a device refuses its work: the rest would fare no better.
        """
        import ray

        shares = Shares(work, self.actors, self._plan.slots, self._batch)
        started, pictures = time.perf_counter(), 0
        size = self._least
        running: dict[object, _Handed] = {}
        problems: list[Exception] = []
        refusal: UserError | None = None
        for _ in range(self._plan.window):
            for name in self.actors:
                self._hand_out(name, shares, size, running)
        while running:
            finished, _ = ray.wait(list(running), num_returns=1)
            for ref in finished:
                handed = running.pop(ref)
                try:
                    report = ray.get(ref)
                    shares.give_back(handed.name, len(handed.items), is_finished=True)
                    if handed.kept is not None:
                        self._pictures.add(handed.items, handed.keep, report.kept, handed.kept)
                    on_done(handed.name, report)
                    pictures += len(handed.items)
                    size = self._next_size(pictures, time.perf_counter() - started)
                except ray.exceptions.RayError as error:
                    shares.give_back(handed.name, len(handed.items), is_finished=False)
                    self._note_failure(handed, error, problems)
                    if is_death(error):
                        self._restart(handed, error)
                    elif isinstance(problems[-1], UserError):
                        refusal = problems[-1]
                if refusal is not None:
                    continue
                if handed.name in self.actors:
                    self._fill(handed.name, shares, size, running)
                else:
                    shares.leave_out(handed.name)
        if refusal is not None:
            raise refusal
        return problems

    def _fill(self, name: str, shares: Shares, size: int, running: dict[object, _Handed]) -> None:
        """Hand a device as many chunks as it may have at once."""
        actor = self.actors[name]
        count = sum(handed.actor is actor for handed in running.values())
        while count < self._plan.window and self._hand_out(name, shares, size, running):
            count += 1

    def _next_size(self, pictures: int, seconds: float) -> int:
        """Pictures of the next chunks, after so many in so much time."""
        rate = pictures / max(seconds, 1e-3) / self._plan.count
        return chunk_for_rate(self._least, rate)

    def _hand_out(
        self, name: str, shares: Shares, size: int, running: dict[object, _Handed]
    ) -> bool:
        items = shares.next_chunk(name, size)
        if not items:
            return False
        actor = self.actors[name]
        if self._pictures is None:
            running[actor.process.remote(items)] = _Handed(name, actor, items)
            return True
        places, keep = self._pictures.places(items), self._pictures.reserve(items)
        if keep:
            report, kept = actor.process.options(num_returns=2).remote(items, places, keep)
            running[report] = _Handed(name, actor, items, keep, kept)
        else:
            running[actor.process.remote(items, places)] = _Handed(name, actor, items)
        return True

    def _note_failure(self, handed: _Handed, error: Exception, problems: list[Exception]) -> None:
        if handed.kept is not None:
            self._pictures.add(handed.items, handed.keep, (), None)
        if self._pictures is not None:
            # They may have been lost with a node; read again, they cannot stop the next round.
            self._pictures.forget(handed.items)
        problems.append(user_error(error))
        log.error("%s failed", handed.name, exc_info=error)

    def _restart(self, handed: _Handed, error: Exception) -> None:
        """Replace a dead actor, unless another of its chunks has had it replaced already."""
        if self.actors.get(handed.name) is handed.actor:
            self._lose(handed.name, error)
            if len(self.lost) <= MAX_RESTARTS:
                self.start()

    def _lose(self, name: str, error: Exception) -> None:
        log.warning("%s was lost: %s", name, error)
        self.lost.append(name)
        # It may only be out of reach: two of that name cannot be.
        kill_actors({name: self.actors.pop(name)})

    def close(self) -> None:
        """Collect the devices' reports and give the devices back."""
        import ray

        for name, actor in list(self.actors.items()):
            try:
                self.reports[name] = ray.get(actor.report.remote())
                ray.get(actor.close.remote())
            except ray.exceptions.RayError as error:
                log.warning("%s gave no report: %s", name, error)
                # Nothing for the next member of a sweep.
                kill_actors({name: self.actors.pop(name)})

    def release(self) -> None:
        """Give the actors back after a whole run; the next member of a sweep takes them."""
        leave_actors(self.actors, DeviceActor, self._actor_options())
        self.actors = {}

    def kill(self) -> None:
        """End the actors, whatever they are doing."""
        kill_actors(self.actors)
        self.actors = {}


@dataclass(frozen=True)
class _Handed:
    """A chunk that a device is working on.

    Attributes:
        name: The device's.
        actor: The device.
        items: The chunk.
        keep: Which of the items' pictures are to be kept.
        kept: Refers to those pictures; `None` where there are none.
    """

    name: str
    actor: Any
    items: list[WorkItem]
    keep: Sequence[int] = ()
    kept: Any = None

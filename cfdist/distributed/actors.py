"""The named Ray actors of a run; in a sweep, one member leaves them to the next.

Starting a process that imports what it needs takes a second or more. A member of a sweep finds
the processes of the one before and only has them load another model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from cfdist.distributed import cluster
from cfdist.machine import reset_peak_memory

REDUCER = "reducer"


class DeviceActor:
    """Hosts one device at a time: a `Device`, or what has its methods."""

    def load(self, device_class: type, arguments: tuple, *warm_up: Any) -> None:
        """Make a device and warm it up.

        Raises:
            UserError: the model does not fit the device or the run.
        """
        reset_peak_memory()
        self._device = device_class(*arguments)
        self._device.warm_up(*warm_up)

    def process(self, *arguments: Any) -> Any:
        """See `Device.process`."""
        return self._device.process(*arguments)

    def report(self) -> Any:
        """See `Device.report`."""
        return self._device.report()

    def close(self) -> None:
        """Close the device; another may be loaded."""
        self._device.close()
        del self._device


class ReducerActor:
    """Hosts one run's `Reducer` at a time."""

    def open(self, *arguments: Any) -> set[str]:
        """Make the reducer of a run; returns what is done already."""
        # The driver needs the class for nothing, and what it imports takes a while.
        from cfdist.distributed.reducer import Reducer

        reset_peak_memory()
        self._reducer = Reducer(*arguments)
        return self._reducer.done()

    def add(self, detections: Any) -> None:
        """See `Reducer.add`."""
        self._reducer.add(detections)

    def done(self) -> set[str]:
        """See `Reducer.done`."""
        return self._reducer.done()

    def done_count(self) -> int:
        """How many work items are on disk."""
        return len(self._reducer.done())

    def finish(self) -> Any:
        """See `Reducer.finish`; another run may be opened after it."""
        evaluation = self._reducer.finish()
        del self._reducer
        return evaluation


def take_actor(name: str, actor_class: type, options: dict[str, Any]) -> Any:
    """The actor of that name that an earlier member of the sweep has left, or a new one."""
    import ray

    kept = cluster.kept_session()
    if kept is not None and name in kept.actors:
        actor, made_as = kept.actors.pop(name)
        if made_as == (actor_class, options):
            return actor
        kill_actors({name: actor})
    return ray.remote(actor_class).options(name=name, **options).remote()


def leave_actors(actors: Mapping[str, Any], actor_class: type, options: dict[str, Any]) -> None:
    """Leave idle actors to the next member of the sweep; end them where there is no sweep."""
    kept = cluster.kept_session()
    if kept is None:
        kill_actors(actors)
    else:
        kept.actors |= {name: (actor, (actor_class, options)) for name, actor in actors.items()}


def end_other_actors(names: Iterable[str]) -> None:
    """End what earlier members left under other names: it would hold cores or chips."""
    kept = cluster.kept_session()
    if kept is not None:
        others = {name: kept.actors.pop(name)[0] for name in set(kept.actors) - set(names)}
        kill_actors(others)


def kill_actors(actors: Mapping[str, Any]) -> None:
    """End named actors and wait until their names are free for the next run."""
    import ray

    for actor in actors.values():
        ray.kill(actor)
    wait_until_free(actors)


def wait_until_free(names: Iterable[str]) -> None:
    """Ray gives an actor's name back some time after its end."""
    import ray

    names = set(names)
    deadline = time.monotonic() + 10
    while names & set(ray.util.list_named_actors()) and time.monotonic() < deadline:
        time.sleep(0.02)

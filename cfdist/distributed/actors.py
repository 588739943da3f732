"""The named actors of a run; in a sweep, a run leaves its actors to the next one.

Starting a process and importing what it needs takes seconds. On 2 cores a sweep of five batch sizes
over 610 pictures with a simulated 310P3 takes 35 s with new processes for each run, and 28 to 30 s
if each run takes over those of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from cfdist.distributed.head import is_silent
from cfdist.distributed.session import shared_session

Actor = Any  # Ray's handle of an actor


def take_actor(name: str, actor_class: type, options: Mapping[str, Any], *arguments: str) -> Actor:
    """The actor that an earlier run of the sweep left, or a new one if there is none like it.

    A new one is made with these arguments.
    """
    import ray

    shared = shared_session()
    if shared is not None and name in shared.idle:
        actor, made_as = shared.idle.pop(name)
        if made_as == (actor_class, options):
            return actor
        kill_actors({name: actor})
    return ray.remote(**options)(actor_class).options(name=name).remote(*arguments)


def leave_actors(
    actors: Mapping[str, Actor], actor_class: type, options: Mapping[str, Any]
) -> None:
    """Leave actors that do nothing any more to the next run of the sweep, or end them."""
    shared = shared_session()
    if shared is None:
        kill_actors(actors)
    else:
        shared.idle |= {name: (actor, (actor_class, options)) for name, actor in actors.items()}


def end_idle_actors(wanted: Collection[str] = ()) -> None:
    """End the actors that an earlier run left and that are not wanted: they hold cores or chips."""
    shared = shared_session()
    if shared is not None:
        kill_actors({name: shared.idle.pop(name)[0] for name in {*shared.idle} - {*wanted}})


def kill_actors(actors: Mapping[str, Actor]) -> None:
    """End named actors; their names are free for the next run then, or 10 s have passed.

    Without the cluster's head nobody can end them; they end with it.
    """
    import ray

    if not actors or is_silent():
        return
    for actor in actors.values():
        ray.kill(actor)
    deadline = time.monotonic() + 10
    while actors.keys() & set(ray.util.list_named_actors()) and time.monotonic() < deadline:
        time.sleep(0.02)

"""Actor processes that the runs of a sweep leave to each other."""

from __future__ import annotations

import contextlib
import os

import pytest

from cfdist.distributed import session as sessions
from cfdist.distributed.actors import end_idle_actors, leave_actors, take_actor

OPTIONS = {"num_cpus": 0}


class Hosting:
    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def sweep(ray_session, monkeypatch):
    shared = sessions.SharedSession((), contextlib.ExitStack(), None)
    monkeypatch.setattr(sessions, "_shared", shared)
    yield shared
    end_idle_actors()


def pid_of(actor) -> int:
    import ray

    return ray.get(actor.pid.remote())


def names() -> set[str]:
    import ray

    return set(ray.util.list_named_actors())


def test_the_next_run_of_a_sweep_gets_the_process(sweep):
    actor = take_actor("host", Hosting, OPTIONS)
    first = pid_of(actor)
    leave_actors({"host": actor}, Hosting, OPTIONS)
    again = take_actor("host", Hosting, dict(OPTIONS))
    assert pid_of(again) == first
    leave_actors({"host": again}, Hosting, OPTIONS)


@pytest.mark.parametrize("options", [{"num_cpus": 0, "max_concurrency": 3}, {"num_cpus": 0.5}])
def test_a_run_that_needs_another_process_gets_a_new_one(sweep, options):
    actor = take_actor("host", Hosting, OPTIONS)
    first = pid_of(actor)
    leave_actors({"host": actor}, Hosting, OPTIONS)
    other = take_actor("host", Hosting, options)
    assert pid_of(other) != first
    assert sweep.idle == {}
    leave_actors({"host": other}, Hosting, options)


def test_processes_that_nobody_wants_end(sweep):
    for name in ("host 0", "host 1"):
        leave_actors({name: take_actor(name, Hosting, OPTIONS)}, Hosting, OPTIONS)
    end_idle_actors(["host 0"])
    assert sweep.idle.keys() == {"host 0"}
    assert {"host 0", "host 1"} & names() == {"host 0"}


def test_without_a_sweep_a_process_ends_with_its_run(ray_session):
    actor = take_actor("host", Hosting, OPTIONS)
    pid_of(actor)
    leave_actors({"host": actor}, Hosting, OPTIONS)
    assert "host" not in names()

"""A reducer that dies or hangs is started again, and loses nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cfdist.detections import Detections, to_arrow
from cfdist.distributed import watch as watching
from cfdist.distributed.actors import kill_actors, take_actor
from cfdist.distributed.events import Events
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.reducer import Begun
from cfdist.distributed.watch import ReducerActor, ReducerWatch, reducer_options
from cfdist.errors import UserError
from cfdist.widerface.ground_truth import PictureTruth

IDS = tuple(f"e/p{i}" for i in range(6))
TRUTH = {id: PictureTruth(id, np.zeros((0, 4)), np.ones((3, 0), bool)) for id in IDS}


def settings_of(output) -> tuple:
    return TRUTH, IDS, output, RunIdentity("f", "simulated"), "official"


def found(*numbers: int):
    return to_arrow([Detections(IDS[i]) for i in numbers])


def process_of(actor) -> int:
    from ray._private.state import actors

    return actors(actor._actor_id.hex())["Pid"]


def test_calls_wait_until_the_reducer_is_open(tmp_path):
    reducer = ReducerActor()
    assert not reducer.is_asked()
    early = threading.Thread(target=reducer.add, args=[found(0)])
    early.start()
    early.join(0.2)
    assert early.is_alive()
    assert reducer.open(*settings_of(tmp_path)) == Begun(set(), 0)
    assert reducer.is_asked()
    early.join(10)
    assert reducer.done == {IDS[0]}


def test_calls_raise_why_the_reducer_is_not_open(tmp_path):
    ReducerActor().open(*settings_of(tmp_path))
    reducer = ReducerActor()
    other = (*settings_of(tmp_path)[:3], RunIdentity("g", "simulated"), "official")
    for call in (lambda: reducer.open(*other), lambda: reducer.add(found(0)), reducer.finish):
        with pytest.raises(UserError, match="output_dir"):
            call()


@pytest.fixture
def reducer():
    actor = take_actor("watched", ReducerActor, reducer_options(4))
    yield actor
    kill_actors({"watched": actor})


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reducer_that_dies_or_hangs_loses_nothing(reducer, tmp_path, monkeypatch, number):
    import ray

    monkeypatch.setattr(watching, "_PERIOD_SECONDS", 0.2)
    monkeypatch.setattr(watching, "_LIMIT_SECONDS", 3)
    events = Events()
    with ReducerWatch(reducer, settings_of(tmp_path), events) as watch:
        assert watch.opened() == Begun(set(), 0)
        ray.get(reducer.add.remote(found(0, 1)))
        os.kill(process_of(reducer), number)
        ray.get([reducer.add.remote(found(1, 2)), reducer.add.remote(found(3, 4, 5))], timeout=60)
        evaluation = ray.get(reducer.finish.remote())
    assert [event.what for event in events] == ["reducer_restarted"]
    assert evaluation.failures == ()
    assert sorted(p.stem for p in (tmp_path / "predictions").rglob("*.txt")) == [
        f"p{i}" for i in range(6)
    ]


@pytest.mark.usefixtures("ray_session")
def test_a_reducer_that_dies_each_time_is_given_up(reducer, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(watching, "_PERIOD_SECONDS", 0.1)
    events = Events()
    with ReducerWatch(reducer, settings_of(tmp_path), events) as watch:
        watch.opened()
        killed, deadline = set(), time.monotonic() + 60
        while len(killed) < 4 and time.monotonic() < deadline:
            process = process_of(reducer)
            if process and process not in killed:
                os.kill(process, signal.SIGKILL)
                killed.add(process)
            time.sleep(0.05)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(reducer.finish.remote())


def test_a_reducer_that_is_asked_before_it_is_told_to_open_was_not_lost(monkeypatch):
    opened = []

    def ask() -> str:  # both calls wait for the process; this one is the first to be taken
        opened.append("opening")
        return "asked"

    def calls(remote):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))

    reducer = SimpleNamespace(open=calls(lambda *_: "opening"), is_asked=calls(ask))
    monkeypatch.setattr(watching, "_has_ended", lambda ref: ref == "asked" or ref in opened)
    monkeypatch.setattr(watching, "_worked", lambda reducer: 0.0)
    monkeypatch.setattr("ray.get", lambda ref: False)
    events = Events()
    watch = ReducerWatch(reducer, (), events)
    assert watch._look()
    assert list(events) == []
    assert watch._look()  # open, and a new process by now
    assert [event.what for event in events] == ["reducer_restarted"]


def test_the_watch_goes_on_after_an_error_that_is_not_the_reducer_s(monkeypatch, caplog):
    looks = []

    def look(self) -> bool:
        looks.append(self)
        if len(looks) < 4:
            raise OSError("too many open files")
        return len(looks) < 6

    remote = SimpleNamespace(remote=lambda *_: None)
    reducer = SimpleNamespace(open=SimpleNamespace(options=lambda **_: remote))
    monkeypatch.setattr(watching, "_PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(ReducerWatch, "_look", look)
    with ReducerWatch(reducer, (), Events()):
        deadline = time.monotonic() + 10
        while len(looks) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(looks) == 6
    assert [one.message for one in caplog.records] == ["the reducer's watch goes on after an error"]

"""What the caller has set up is as before when a run has ended, however it ended."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest
from hydra.core.global_hydra import GlobalHydra

from cfdist.api import surroundings
from cfdist.api.surroundings import alone, session
from cfdist.distributed.session import shares_sessions
from cfdist.report.screen import console

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


def state() -> tuple:
    handlers = [signal.getsignal(number) for number in NUMBERS]
    return dict(os.environ), handlers, logging.getLogger().level, console.quiet


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_own_is_left_as_it_was(fails, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("REMOVED", "x")
    hydra = object()
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", hydra)
    before = state()
    try:
        with alone(show=False):
            assert console.quiet
            assert GlobalHydra.instance().hydra is None
            assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
            assert os.environ["PYTHONPATH"]
            os.environ["CFDIST_MARK"] = "abc"
            del os.environ["REMOVED"]
            logging.getLogger().setLevel(logging.DEBUG)
            signal.signal(signal.SIGUSR2, lambda *_: None)
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert state() == before
    assert GlobalHydra.instance().hydra is hydra


def test_the_screen_is_shown_if_asked_for():
    with alone(show=True):
        assert not console.quiet


def test_one_run_at_a_time_and_threads_wait():
    order = []

    def call() -> None:
        with alone(show=False):
            order.append("other")

    with alone(show=False):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


def test_runs_of_a_session_share_it_and_may_come_from_threads():
    has_ray = surroundings.caller_has_ray()  # of other tests of this process
    with session():
        assert shares_sessions()
        done = []

        def call() -> None:
            with alone(show=False):
                done.append(os.environ["RAY_USAGE_STATS_ENABLED"])

        thread = threading.Thread(target=call)
        thread.start()
        thread.join(10)
        assert done == ["0"]
    assert not shares_sessions()
    assert surroundings.caller_has_ray() == has_ray

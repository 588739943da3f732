"""A run whose cluster has lost its head ends; one whose head answers does not."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from cfdist.distributed import guard, head, joining
from cfdist.errors import StoppedError
from cfdist.monitoring import terminal


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(head, "_PERIOD_SECONDS", 0.05)


@pytest.mark.usefixtures("ray_session", "quick")
@pytest.mark.parametrize("silence", head._SILENCE)
def test_a_silent_head_ends_the_run_within_a_call_into_ray(monkeypatch, silence):
    import ray

    class Sleeper:
        def sleep(self) -> None:
            time.sleep(30)

    sleeper = ray.remote(Sleeper).options(num_cpus=0).remote()
    monkeypatch.setattr(head, "answer_of", lambda address, token: silence)
    began = time.monotonic()
    said = r"head of the Ray cluster \(\S+:\d+\) .* for 1 s"
    with pytest.raises(StoppedError, match=said), head.head_watched(1):
        ray.get(sleeper.sleep.remote())
    assert time.monotonic() - began < 15
    assert head.is_silent()
    monkeypatch.undo()
    with head.head_watched(60):  # the next session
        assert not head.is_silent()
    ray.kill(sleeper)


@pytest.mark.usefixtures("ray_session", "quick")
def test_a_node_process_that_stands_still_ends_the_run(monkeypatch):
    from ray._private import worker

    assert not head.is_silent()
    with socket.create_server(("127.0.0.1", 0)) as stopped:  # nobody accepts
        node = worker._global_node
        there = SimpleNamespace(
            raylet_socket_name=node.raylet_socket_name,
            node_ip_address="127.0.0.1",
            node_manager_port=stopped.getsockname()[1],
        )
        monkeypatch.setattr(worker, "_global_node", there)
        monkeypatch.setattr(joining, "_TIMEOUT_SECONDS", 0.5)
        said = r"node process on this host has not answered for 1 s"
        with pytest.raises(StoppedError, match=said), head.head_watched(1):
            time.sleep(15)


@pytest.mark.usefixtures("ray_session", "quick")
@pytest.mark.parametrize("answers", [["OK"], ["UNAVAILABLE", "OK"], ["UNAUTHENTICATED"]])
def test_a_head_that_answers_now_and_then_is_there(monkeypatch, answers):
    import ray

    calls = []  # of the thread that asks; the session's own watch asks as well

    head_at = ray.get_runtime_context().gcs_address

    def answer(address, token):
        if address != head_at:
            return "UNIMPLEMENTED"  # the node process has no such call
        calls.append(threading.get_ident())
        return answers[calls.count(calls[-1]) % len(answers)]

    monkeypatch.setattr(head, "answer_of", answer)
    with head.head_watched(1):
        time.sleep(2)
    assert len(calls) > 3


@pytest.mark.usefixtures("ray_session", "quick")
def test_a_node_process_that_is_gone_ends_the_run_at_once(monkeypatch, tmp_path):
    from ray._private import worker

    path = str(tmp_path / "raylet")
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(raylet_socket_name=path))
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(path)
        node.listen()
        with head.head_watched(60):
            there, _ = node.accept()
            time.sleep(0.3)  # looked for several times
        there.close()  # one that closes a connection, and answers, is there
        with head.head_watched(60):
            node.accept()[0].close()
            time.sleep(0.3)
        assert not head.is_silent()
        said = "node process on this host has ended"
        with pytest.raises(StoppedError, match=said), head.head_watched(60):
            there, _ = node.accept()
            node.close()
            there.close()
            time.sleep(30)
    assert head.is_silent()
    with pytest.raises(StoppedError, match=said), head.head_watched(60):
        raise ValueError("what fails then comes of it")


@pytest.mark.usefixtures("ray_session", "quick")
def test_an_interruption_that_comes_while_an_error_is_looked_at_changes_nothing(monkeypatch):
    def interrupted(path: str) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return True
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.01)
        return False

    said = "node process on this host has ended"
    with pytest.raises(StoppedError, match=said), head.head_watched(60):
        monkeypatch.setattr(head, "_has_node", interrupted)
        raise ValueError("it is gone")


@pytest.mark.usefixtures("ray_session", "quick")
def test_an_interruption_stays_one():
    with pytest.raises(KeyboardInterrupt), head.head_watched(60):
        raise KeyboardInterrupt
    assert not head.is_silent()


def test_a_head_that_speaks_tls_is_not_asked(monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"  # nobody listens there
        assert head._is_silent(address)
        monkeypatch.setenv("RAY_USE_TLS", "1")
        assert not head._is_silent(address)


def test_a_signal_that_comes_when_the_run_has_ended_is_harmless(monkeypatch):
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(head, "_is_silent", lambda address: False)
    with head.head_watched(30):
        pass
    os.kill(os.getpid(), signal.SIGUSR2)  # by default it kills the process
    time.sleep(0.01)
    assert signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL


def test_a_question_that_cannot_be_asked_says_nothing_of_the_head(monkeypatch):
    def fail(address, token):
        raise OSError("too many open files")

    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    monkeypatch.setattr(head, "answer_of", fail)
    assert not head._is_silent("127.0.0.1:1")


def test_the_end_of_a_session_without_a_head_is_limited(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(head, "_SECONDS_TO_END", 0.1)
    monkeypatch.setattr(head, "is_silent", lambda: True)
    monkeypatch.setattr("ray.shutdown", lambda: ended.wait(20))
    began = time.monotonic()
    head.shut_down()
    assert time.monotonic() - began < 15
    assert not ended.is_set()
    ended.set()


def test_a_command_leaves_a_session_without_a_head_until_it_needs_another(monkeypatch):
    ended = []
    monkeypatch.setattr(head, "is_silent", lambda: True)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(1))
    monkeypatch.setattr(terminal, "_is_guarded", True)
    head.shut_down()
    assert (ended, guard.has_left_ray()) == ([], True)
    head.end_left_session()
    assert (ended, guard.has_left_ray()) == ([1], False)
    head.end_left_session()
    assert ended == [1]
    # One that stays for the next command is left, too: its end would be waited for.
    monkeypatch.setattr(head, "is_silent", lambda: False)
    head.shut_down(stays=True)
    assert (ended, guard.has_left_ray()) == ([1], True)
    head.end_left_session()
    head.shut_down()
    assert (ended, guard.has_left_ray()) == ([1, 1, 1], False)

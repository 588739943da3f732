"""Which accelerators a run's own cluster sees, for how long, and what is left of it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import SimpleNamespace

import pytest

from cfdist.ascend.npu_smi import Npu
from cfdist.distributed import accelerators, guard, keeping
from cfdist.distributed import session as sessions
from cfdist.errors import UserError
from cfdist.monitoring.metrics import Recorder

CUDA = "CUDA_VISIBLE_DEVICES"
ASCEND = "ASCEND_RT_VISIBLE_DEVICES"


@pytest.fixture
def seen(monkeypatch) -> list[dict]:
    """What each session of a Ray that starts nothing was started with: resources, variables."""
    started: list[dict] = []

    def start_ray(dashboard, accelerators):
        visible = {name: os.environ.get(name) for name in (CUDA, ASCEND)}
        started.append({**accelerators, **visible})
        return SimpleNamespace(dashboard_url=None)

    ray = SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(sessions, "start_ray", start_ray)
    monkeypatch.setattr(sessions, "join_ray", lambda address: start_ray(False, {}))
    monkeypatch.setattr(sessions, "_logging_what_ray_prints", contextlib.nullcontext)
    monkeypatch.setattr(sessions, "shut_down", lambda stays: None)
    monkeypatch.setattr(sessions, "head_watched", lambda wait_s: contextlib.nullcontext())
    monkeypatch.setattr(accelerators, "list_npus", lambda: ["chip"] * 8)
    monkeypatch.setattr(
        accelerators, "read_npus", lambda: [Npu("Ascend310P3", n, 0) for n in range(8)]
    )
    monkeypatch.setattr(accelerators, "count_accelerators", lambda kind: 8)
    monkeypatch.setattr(Recorder, "held_until", 0.0)
    for name in (CUDA, ASCEND):
        monkeypatch.delenv(name, raising=False)
    return started


@pytest.mark.parametrize(
    ("kind", "variable", "before", "expected"),
    [
        ("gpu", CUDA, None, "0,5"),
        ("npu", ASCEND, None, "0,5"),
        ("gpu", CUDA, "2,3,4,1,0,7", "2,7"),
        ("npu", ASCEND, "2,3,4,1,0,7", "2,7"),
        ("gpu", CUDA, "a,b,c,d,e,MIG-x", "a,MIG-x"),
    ],
)
def test_a_list_counts_within_the_allotment_and_holds_for_its_session(
    seen, monkeypatch, kind, variable, before, expected
):
    if before is not None:
        monkeypatch.setenv(variable, before)
    with sessions.own_session(None, False, kind, [0, 5]):
        assert os.environ[variable] == expected
    assert seen[0][variable] == expected
    assert os.environ.get(variable) == before


def test_a_kept_session_is_given_back_before_the_same_command_s_next_one(
    seen, monkeypatch, tmp_path
):
    monkeypatch.setattr(guard, "_has_left_ray", True)
    monkeypatch.setattr(sessions, "end_left_session", lambda: guard.leave_ray(False))
    (tmp_path / guard.IN_USE).touch()
    record = keeping.Record("mark", str(tmp_path), "127.0.0.1:1", "none", 1.0, "")
    keeping.Kept(tmp_path / "a.json", record, guard.use(tmp_path)).leave()
    with pytest.raises(BlockingIOError):  # Ray's end is still to come
        guard.use(tmp_path)
    with sessions.own_session(None, False, "cpu", "auto"):
        os.close(guard.use(tmp_path))


CHIPS = [Npu("Ascend310P3", n, 0, "Critical" if n in (1, 3) else "OK") for n in range(5)]


@pytest.mark.parametrize(
    ("visible", "devices", "expected"),
    [
        (None, "auto", "0,2,4"),
        (None, 2, "0,2,4"),
        (None, [1], "1"),  # asked for by name
        ("0,2", "auto", "0,2"),
        ("3,4", "auto", "4"),
    ],
)
def test_broken_chips_are_left_out(seen, monkeypatch, visible, devices, expected):
    monkeypatch.setattr(accelerators, "read_npus", lambda: CHIPS)
    if visible is not None:
        monkeypatch.setenv(ASCEND, visible)
    with sessions.own_session(None, False, "npu", devices):
        pass
    assert seen[0][ASCEND] == expected
    assert seen[0]["resources"] == {"NPU": len(expected.split(","))}
    assert os.environ.get(ASCEND) == visible


def test_only_broken_chips_are_the_user_s_error(seen, monkeypatch):
    monkeypatch.setattr(accelerators, "read_npus", lambda: CHIPS)
    monkeypatch.setenv(ASCEND, "1,3")
    with (
        pytest.raises(UserError, match=r"VISIBLE_DEVICES=1,3: .*is Critical"),
        sessions.own_session(None, False, "npu", "auto"),
    ):
        pass
    assert seen == []


@pytest.mark.parametrize(("kind", "variable"), [("gpu", CUDA), ("npu", ASCEND)])
def test_a_device_that_is_not_allotted_is_refused_by_name(seen, monkeypatch, kind, variable):
    with (
        pytest.raises(UserError, match=r"devices=\[8\]: there is no .PU 8; this machine has 8"),
        sessions.own_session(None, False, kind, [8]),
    ):
        pass
    monkeypatch.setenv(variable, "4,5")
    with (
        pytest.raises(UserError, match=rf"devices=\[0, 7\]: .*PU 7; {variable}=4,5 allots 2"),
        sessions.own_session(None, False, kind, [0, 7]),
    ):
        pass
    assert seen == []


def test_a_session_that_does_not_start_leaves_no_list(seen, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(sessions, "start_ray", refuse)
    with pytest.raises(RuntimeError), sessions.own_session(None, False, "gpu", [1]):
        pass
    assert CUDA not in os.environ


@pytest.mark.parametrize("address", [None, "1.2.3.4:6379"])
def test_counts_are_kept_back_until_ray_s_agent_is_found(seen, address):
    with sessions.own_session(address, False, "cpu", 1):
        assert Recorder.held_until > time.monotonic()


def test_runs_that_share_a_session_end_it(seen, monkeypatch):
    with sessions.sharing():
        for _ in range(2):
            with sessions.session(None, False, "npu", 2):
                pass
    assert len(seen) == 1 and not sessions.shares_sessions()
    assert sessions.shared_session() is None
    # One that a sweep shares is the sweep's to end, whatever goes wrong.
    monkeypatch.setattr(sessions, "_shares_sessions", True)
    with pytest.raises(RuntimeError), sessions.sharing(), sessions.session(None, False, "npu", 2):
        raise RuntimeError("failed")
    assert sessions.shares_sessions() and sessions.shared_session() is not None
    sessions.close_shared_session()


def test_a_sweep_s_later_runs_see_all_devices_again(seen, monkeypatch):
    monkeypatch.setattr(sessions, "_shares_sessions", True)
    for devices in ([0], 2):
        with sessions.session(None, False, "npu", devices):
            pass
    sessions.close_shared_session()
    assert [one[ASCEND] for one in seen] == ["0", None]
    assert [one["resources"] for one in seen] == [{"NPU": 1}, {"NPU": 8}]


def test_other_devices_and_clusters_are_left_alone(seen):
    with (
        sessions.own_session(None, False, "cpu", [0]),
        sessions.own_session("auto", False, "gpu", 1),
    ):
        pass
    with sessions.own_session(None, False, "gpu", 2):
        pass
    assert seen == [{CUDA: None, ASCEND: None}] * 3


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_dashboard_is_there_unasked_on_a_terminal(seen, monkeypatch, is_terminal):
    """The screen counts, and not what the process's output leads to while a job runs."""
    asked = []

    def start_ray(dashboard, accelerators):
        asked.append(dashboard)
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(sessions, "start_ray", start_ray)
    screen = SimpleNamespace(isatty=lambda: is_terminal, write=len, flush=lambda: None)
    monkeypatch.setattr(sessions.terminal, "out", lambda: screen)
    with sessions.own_session(None, "auto", "cpu", "auto"):
        assert asked == [is_terminal]


def test_a_command_line_that_ray_cannot_take_is_refused_before_it_starts(seen, monkeypatch):
    monkeypatch.setattr(sessions.sys, "argv", ["main.py", "output_dir=caf\udce9"])
    with pytest.raises(UserError, match=r"^output_dir=caf\udce9: .* no UTF-8"):
        sessions.own_session(None, False, "cpu", "auto").__enter__()
    assert seen == []


def test_what_ray_cannot_start_on_is_refused_before_it_is_announced(seen, monkeypatch, capsys):
    def is_down() -> None:
        raise UserError("this machine's loopback interface does not work")

    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setattr(sessions, "check_loopback", is_down)
    with pytest.raises(UserError, match="loopback"):
        sessions.own_session(None, False, "cpu", "auto").__enter__()
    assert capsys.readouterr().out == ""
    assert seen == []


def test_ray_s_start_is_announced_once(seen, monkeypatch, capsys):
    ray = sys.modules["ray"]
    monkeypatch.delitem(sys.modules, "ray")
    for address in (None, "host:1", None):
        with sessions.own_session(address, False, "cpu", "auto"):
            pass
        sys.modules["ray"] = ray
    assert capsys.readouterr().out == "starting Ray ...\n"
    assert len(seen) == 3


def test_what_ray_would_print_is_in_the_log(caplog, capsys):
    from ray._private import worker

    before = worker.print_to_stdstream
    with sessions._logging_what_ray_prints():
        lines = ["A worker died or was killed.\n", "more"]
        worker.print_to_stdstream({"lines": lines, "pid": "raylet", "is_err": False}, False)
    assert worker.print_to_stdstream is before
    assert [one.message for one in caplog.records] == [
        "Ray: A worker died or was killed.",
        "Ray: more",
    ]
    assert capsys.readouterr() == ("", "")

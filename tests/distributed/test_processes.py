"""What Ray starts for a session of one's own, and what each of its processes imports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from cfdist.distributed import processes
from tests.conftest import PROJECT

# What neither a device nor the reducer needs, and what takes long to import.
HEAVY = ("hydra", "omegaconf", "pydantic", "onnx", "rich", "scipy", "matplotlib")


def test_ray_sets_no_handlers_and_its_processes_have_sessions_of_their_own():
    from ray._private import node, services, utils

    before = utils.set_sigterm_handler, services.ConsolePopen, node.Node
    handler = signal.getsignal(signal.SIGTERM)
    with processes.interruptible(), processes.own_processes("a"):
        utils.set_sigterm_handler(lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is handler
        with services.ConsolePopen(["sleep", "60"]) as process:
            assert os.getsid(process.pid) == process.pid
            assert psutil.Process(process.pid).environ()["CFDIST_MARK"] == "a"
            process.kill()
    assert (utils.set_sigterm_handler, services.ConsolePopen, node.Node) == before


def test_a_reserved_port_is_a_server_s_alone():
    for port in set(processes.reserved_ports().values()):
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)) as server:
            socket.create_connection(server.getsockname()).close()
    first = processes.reserved_ports()
    assert len(set(first.values())) == 4
    processes.reserved_ports()
    assert len(processes._reserved) == 4


def test_a_session_s_processes_are_those_that_a_run_needs(ray_session):
    import ray

    ray.get(ray.remote(lambda: os.getpid()).remote())
    node = ray._private.worker._global_node
    # Other sessions that this process's children have started are not this one's.
    children = psutil.Process().children(recursive=True)
    commands = [" ".join(one.cmdline()) for one in children]
    commands = [one for one in commands if node.get_session_dir_path() in one]
    assert any("raylet" in one for one in commands)
    for script in ("monitor.py", "dashboard/dashboard.py"):
        assert not [one for one in commands if script in one]
    assert len([one for one in commands if "gcs_server" in one.partition(" ")[0]]) == 1
    # The agents listen where Ray was told that they would; one of them does for a dashboard only.
    ports = node._ray_params
    for name in {*processes._PORTS} - {"dashboard_agent_listen_port"}:
        _wait_for_server(getattr(ports, name))


def _wait_for_server(port: int) -> None:
    for attempt in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except ConnectionRefusedError:
            if attempt == 599:
                raise
            subprocess.run(["sleep", "0.1"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["cfdist.distributed.device_actor", "cfdist.distributed.watch"])
def test_an_actor_s_process_imports_what_it_needs(module):
    asked = f"import sys, {module}, cfdist.devices.detector; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", asked], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in found
    assert {*HEAVY}.isdisjoint(found)


def test_a_process_of_ray_that_ends_as_it_starts_is_noticed():
    with subprocess.Popen(["sleep", "60"]) as there, subprocess.Popen(["false"]) as gone:
        with pytest.raises(RuntimeError, match=r"^raylet has ended with 1$"):
            processes._wait({"gcs_server": there, "raylet": gone}, lambda: False)
        processes._wait({"gcs_server": there}, lambda: True)
        there.kill()


def test_a_head_that_ends_as_ray_starts_takes_the_node_process_with_it(tmp_path):
    """Also while this process is in a call that lets no other thread run."""
    from ray._private import services

    for name in ("gcs_server", "raylet"):
        (tmp_path / name).symlink_to("/bin/sleep")
    with (
        processes.own_processes("a"),
        services.ConsolePopen([tmp_path / "gcs_server", "60"]) as head,
        services.ConsolePopen([tmp_path / "raylet", "60"]) as node,
    ):
        with pytest.raises(subprocess.TimeoutExpired):
            node.wait(0.3)
        head.kill()
        assert node.wait(10) == -signal.SIGKILL


def test_a_head_that_ends_after_the_start_is_left_to_the_watch(tmp_path):
    """`cluster.wait_s` says how long it is waited for."""
    from ray._private import services

    for name in ("gcs_server", "raylet"):
        (tmp_path / name).symlink_to("/bin/sleep")
    with processes.own_processes("a"):
        head = services.ConsolePopen([tmp_path / "gcs_server", "60"])
        node = services.ConsolePopen([tmp_path / "raylet", "60"])
    with head, node:
        head.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            node.wait(0.3)
        node.kill()

"""The processes of a Ray session of one's own: what a run needs, none waiting for another.

Ray has no options for what is changed here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cfdist.distributed.guard import VARIABLE
from cfdist.machine import in_environment
from cfdist.monitoring import terminal

# Of the two agents beside Ray's node process.
_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)

_CHECKOUT = Path(__file__).resolve().parents[2]

# What a session cannot start without. Ray asks for minutes whether they answer.
_NEEDED = ("gcs_server", "raylet")
# Seconds; ten commands at once on two slow cores take a minute to start.
LONGEST_START = 120.0
_ANSWER_SECONDS = 1.0  # that one question to the head may take

# Bound to the ports of this process's last session, so that nobody else is given them.
_reserved: list[socket.socket] = []


@contextlib.contextmanager
def own_processes(
    mark: str, outlives: bool = False, on_node: Callable[[int], None] = lambda process: None
) -> Iterator[None]:
    """Let Ray, started in the `with` block, start what a run needs, each in a session of its own.

    They have a mark, see `cfdist.distributed.guard`, and may be such as outlive this process.
    `on_node` is told the number of the node's process once that listens.

    What is signalled to this process's group, or by its terminal, would end them before this
    process has ended what it does with them.
    """
    from ray._private import node, services, utils
    from ray._raylet import get_port_filename  # type: ignore[attr-defined]

    started: dict[str, subprocess.Popen[bytes]] = {}
    together = _EndingTogether()
    wait_for_port = vars(node)["wait_for_persisted_port"]

    def wait_for_watched_port(folder: str, node_id: str, name: str, **options: Any) -> int:
        path = os.path.join(folder, get_port_filename(node_id, name))
        _wait(started, lambda: os.path.exists(path))
        return int(wait_for_port(folder, node_id, name, **options))

    class Started(services.ConsolePopen):
        def __init__(self, command: Sequence[str], **options: Any) -> None:
            options["env"] = {**(options.get("env") or os.environ), VARIABLE: mark}
            if outlives:
                options["env"] |= _preloading(options["env"])
                options["stdin"] = subprocess.DEVNULL
            name = os.path.basename(command[0])
            if name == "gcs_server":
                together.start_head(options)
            super().__init__(command, **options, start_new_session=True)
            if name in _NEEDED:
                started[name] = self
            if name == "raylet":
                together.watch(self.pid, mark)

    changed: dict[str, Any] = {}
    if importlib.util.find_spec("aiohttp"):
        # Ray would import all that its agents need, to see whether it is there.
        changed = {"get_dashboard_dependency_error": lambda: None}
    with (
        _replaced(services, ConsolePopen=Started),
        _replaced(
            node,
            Node=_node_class(outlives, on_node, started),
            wait_for_persisted_port=wait_for_watched_port,
        ),
        _replaced(utils, **changed),
        together,
    ):
        yield


class _EndingTogether(contextlib.ExitStack):
    """Ends the node's process at once if the head's ends in the `with` block.

    That head does not come back. By Ray's own limit the node would look for it for a minute, and
    this process with it, in a call that lets no other thread run: a process of its own waits here.
    """

    def start_head(self, options: dict[str, Any]) -> None:
        """Change the options of the process, so that its end is noticed."""
        self.close()  # of a start that has failed
        self._there, self._held = map(self.enter_context, socket.socketpair())
        options["pass_fds"] = (self._held.fileno(),)

    def watch(self, node: int, mark: str) -> None:
        """Wait for the end of the head, which then has the other end of the pair for itself."""
        self._held.close()
        waiting = subprocess.Popen(
            ["/bin/sh", "-c", 'read _; kill -9 "$0"', str(node)],
            stdin=self._there.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={VARIABLE: mark},
            start_new_session=True,
        )
        self.callback(waiting.wait)
        self.callback(waiting.kill)


def _preloading(environment: Mapping[str, str]) -> dict[str, str]:
    """Further variables, by which Ray's workers import what actors need before there is one."""
    paths = [str(_CHECKOUT), environment.get("PYTHONPATH", "")]
    return {
        "RAY_preload_python_modules": "cfdist.distributed.preloaded",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def _node_class(
    outlives: bool, on_node: Callable[[int], None], started: dict[str, subprocess.Popen[bytes]]
) -> type:
    """Ray's node without what no run needs: each such process takes a second of a core.

    One that outlives this process is not ended with it.
    """
    from ray._private import node
    from ray._raylet import persist_port  # type: ignore[attr-defined]

    class Node(node.Node):
        def __init__(self, ray_params: Any, **options: Any) -> None:
            started.clear()  # of a start that has failed
            self._agent_ports = reserved_ports()
            ray_params.update_if_absent(**self._agent_ports)
            if outlives:
                options["spawn_reaper"] = False
            super().__init__(ray_params, **options)

        def start_raylet(self, *options: Any) -> None:
            """Start the node's process, which would wait for what its agents write here."""
            for name, port in self._agent_ports.items():
                persist_port(self._session_dir, self._node_id, name, port)
            super().start_raylet(*options)
            _wait(started, lambda: os.path.exists(str(self._raylet_socket_name)))
            on_node(started["raylet"].pid)
            head = self.get_gcs_client()  # type: ignore[no-untyped-call]
            _wait(started, lambda: _knows(head, str(self._node_id)))

        def start_monitor(self) -> None:
            """Start no autoscaler."""

        def start_log_monitor(self) -> None:
            """Start what sends the workers' logs to the driver, if somebody reads them."""
            if terminal.settings.is_verbose:
                super().start_log_monitor()  # type: ignore[no-untyped-call]

        def start_api_server(self, *, include_dashboard: Any, **options: Any) -> None:
            """Start the dashboard if it is wanted."""
            if include_dashboard:
                super().start_api_server(include_dashboard=include_dashboard, **options)

        def kill_all_processes(self, *_: Any, **options: Any) -> None:
            """End the processes at once; Ray would wait for each to end in order."""
            if not outlives:
                super().kill_all_processes(**(options | {"allow_graceful": False}))

        def destroy_external_storage(self) -> None:
            """Remove what Ray has written to disk for want of memory."""
            if not outlives:
                super().destroy_external_storage()  # type: ignore[no-untyped-call]

    return Node


def _knows(head: Any, node: str) -> bool:
    """Whether the head, which its client asks, has a node of this number."""
    from ray._raylet import NodeID

    with contextlib.suppress(Exception):  # it does not answer yet
        return bool(head.check_alive([NodeID.from_hex(node)], timeout=_ANSWER_SECONDS)[0])
    return False


def _wait(started: Mapping[str, subprocess.Popen[bytes]], holds: Callable[[], bool]) -> None:
    """Wait until something holds, while the processes that have to make it so are there.

    Raises:
        RuntimeError: one of them has ended, or it takes too long.
    """
    deadline = time.monotonic() + LONGEST_START
    while not holds():
        for name, process in started.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} has ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"Ray's processes do not answer within {LONGEST_START:.0f} s")
        time.sleep(0.01)


def reserved_ports() -> dict[str, int]:
    """A free port for each server of Ray's agents, which nobody else is given meanwhile.

    A port that is bound here and not listened to can be bound by a server in the way in which these
    bind it (SO_REUSEADDR).
    """
    while _reserved:
        _reserved.pop().close()
    for _ in _PORTS:
        _reserved.append(socket.socket())
        _reserved[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reserved[-1].bind(("127.0.0.1", 0))
    return {name: one.getsockname()[1] for name, one in zip(_PORTS, _reserved, strict=True)}


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let Ray, started in the `with` block, listen on the loopback interface and no other.

    Ray has this setting for Windows and macOS, where it is the default. Without it Ray takes the
    address by which other machines reach this one, and its processes listen on all interfaces.
    """
    from ray._private import ray_constants

    with (
        in_environment(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0"),
        _replaced(ray_constants, ENABLE_RAY_CLUSTER=False),
    ):
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Keep this process's handling of SIGTERM while Ray, in the `with` block, sets its own."""
    from ray._private import utils

    with _replaced(utils, set_sigterm_handler=lambda _: None):
        yield


@contextlib.contextmanager
def _replaced(module: Any, **attributes: Any) -> Iterator[None]:
    """Give a module other attributes in the `with` block."""
    before = {name: getattr(module, name) for name in attributes}
    vars(module).update(attributes)
    try:
        yield
    finally:
        vars(module).update(before)

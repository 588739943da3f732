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
from collections.abc import Callable, Iterator, Mapping
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

_RAYLET_SECONDS = 30.0  # that a raylet may take to listen

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

    class Started(services.ConsolePopen):
        def __init__(self, *command: Any, **options: Any) -> None:
            options["env"] = {**(options.get("env") or os.environ), VARIABLE: mark}
            if outlives:
                options["env"] |= _preloading(options["env"])
                options["stdin"] = subprocess.DEVNULL
            super().__init__(*command, **options, start_new_session=True)

    changed: dict[str, Any] = {}
    if importlib.util.find_spec("aiohttp"):
        # Ray would import all that its agents need, to see whether it is there.
        changed = {"get_dashboard_dependency_error": lambda: None}
    with (
        _replaced(services, ConsolePopen=Started),
        _replaced(node, Node=_node_class(outlives, on_node)),
        _replaced(utils, **changed),
    ):
        yield


def _preloading(environment: Mapping[str, str]) -> dict[str, str]:
    """Further variables, by which Ray's workers import what actors need before there is one."""
    paths = [str(_CHECKOUT), environment.get("PYTHONPATH", "")]
    return {
        "RAY_preload_python_modules": "cfdist.distributed.preloaded",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def _node_class(outlives: bool, on_node: Callable[[int], None]) -> type:
    """Ray's node without what no run needs: each such process takes a second of a core.

    One that outlives this process is not ended with it.
    """
    from ray._private import node, ray_constants
    from ray._raylet import persist_port  # type: ignore[attr-defined]

    class Node(node.Node):
        def __init__(self, ray_params: Any, **options: Any) -> None:
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
            raylet = self.all_processes[ray_constants.PROCESS_TYPE_RAYLET][0].process
            _wait_for_raylet(raylet, str(self._raylet_socket_name))
            on_node(raylet.pid)

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


def _wait_for_raylet(raylet: subprocess.Popen[bytes], path: str) -> None:
    """Wait until the node's process has made its socket.

    Raises:
        RuntimeError: it has ended; Ray would ask for its node for minutes.
    """
    deadline = time.monotonic() + _RAYLET_SECONDS
    while not os.path.exists(path) and time.monotonic() < deadline:
        if raylet.poll() is not None:
            raise RuntimeError(f"the raylet has ended with {raylet.returncode}")
        time.sleep(0.02)


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

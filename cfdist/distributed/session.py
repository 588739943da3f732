"""The Ray cluster that a run uses: started here, or one that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cfdist.ascend.npu_smi import list_npus, read_npus, usable_numbers
from cfdist.distributed.plan import Auto, Devices
from cfdist.errors import UserError, raise_interruption
from cfdist.machine import available_cores

if TYPE_CHECKING:
    from cfdist.distributed.work import MaterialisedPictures

# Names the devices that a process sees; inside, they are numbered from 0.
VISIBLE_DEVICES = {"gpu": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


@dataclass
class SharedSession:
    """A Ray session that stays open for the runs of a sweep while they want the same one.

    Attributes:
        settings: What the session was started with; a run that wants others gets a new session.
        pictures: The letterboxed pictures of the sweep, once they are materialised.
        idle: Name -> (actor, what it was made as), see `cfdist.distributed.actors`.
    """

    settings: tuple[object, ...]
    stack: contextlib.ExitStack
    dashboard: str | None
    pictures: MaterialisedPictures | None = None
    idle: dict[str, tuple[Any, tuple[type, Mapping[str, Any]]]] = field(default_factory=dict)


_shares_sessions = False
_shared: SharedSession | None = None


def share_sessions() -> None:
    """Let `session` leave a session open for the next run, until `close_shared_session`."""
    global _shares_sessions
    _shares_sessions = True


def shared_session() -> SharedSession | None:
    """The open session of a sweep; `None` if each run has its own."""
    return _shared


def close_shared_session() -> None:
    """End the session that the runs of a sweep share, if there is one."""
    global _shared
    shared, _shared = _shared, None
    if shared is not None:
        shared.pictures = None
        shared.stack.close()


@contextlib.contextmanager
def session(
    address: str | None, dashboard: bool | Auto, kind: str = "cpu", devices: Devices = "auto"
) -> Iterator[str | None]:
    """The Ray session of a run: its own, or the one that the runs of a sweep share.

    Args:
        address: "auto", "host:port", or `None` for a cluster of the run's own.
        dashboard: Whether that cluster has Ray's dashboard; "auto": on a terminal.
        kind: "cpu", "gpu" or "npu": what the run's devices are.
        devices: As in the configuration; with a list, that cluster sees only those accelerators.

    Yields:
        The dashboard's URL, or `None` without one.

    Raises:
        UserError: no cluster answers at `address`.
    """
    global _shared
    if not _shares_sessions:
        with own_session(address, dashboard, kind, devices) as url:
            yield url
        return
    settings = (address, dashboard, kind, devices if isinstance(devices, list) else None)
    if _shared is not None and _shared.settings != settings:
        close_shared_session()
    if _shared is None:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(own_session(address, dashboard, kind, devices))
            _shared = SharedSession(settings, stack.pop_all(), url)
    yield _shared.dashboard


@contextlib.contextmanager
def own_session(
    address: str | None, dashboard: bool | Auto, kind: str, devices: Devices
) -> Iterator[str | None]:
    """Connect to a cluster, or start one on this machine; leave it at the end. See `session`.

    A session that runs already (several jobs in one process) is used and left running.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The device actors decide themselves which devices they see.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # In two starts of five Ray's node process connects to its object store a moment too early and
    # waits a second before it tries again. These waits are shorter, and as long in all.
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
    _announce(address)
    import ray

    # Ray logs a traceback and goes on if the toolkit's package `acl` is missing.
    logging.getLogger("ray._private.accelerators.npu").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield None
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    with contextlib.ExitStack() as undo:
        if address is None:
            undo.enter_context(_only_visible(kind, devices))
            context = ray.init(
                address="local",
                num_cpus=available_cores(),
                resources=_own_accelerators(kind),
                include_dashboard=sys.stdout.isatty() if dashboard == "auto" else dashboard,
                **quiet,
            )
        else:
            context = _join(address, quiet)
        # Ray has put its own handler in place, which ends in a crash report.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, raise_interruption)
        try:
            yield f"http://{context.dashboard_url}" if context.dashboard_url else None
        finally:
            if address is None:
                end_autoscaler()
            ray.shutdown()


def _announce(address: str | None) -> None:
    """Say that Ray is started here, which takes a second and more, unless it is there already.

    Raises:
        UserError: Ray will not take this process's command line.
    """
    for argument in sys.argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{argument}: a name whose bytes are no UTF-8, which Ray refuses in a command; "
                "rename the file or folder, or name a link to it"
            ) from None
    # A cluster that is there may not answer, and a refusal is one line.
    if address is None and "ray" not in sys.modules:
        print("starting Ray ...", flush=True)


def _join(address: str, options: dict[str, Any]) -> Any:
    """Connect to a cluster that is there; returns what `ray.init` does."""
    import ray

    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host.rpartition("//")[2], int(port)), timeout=5).close()
        return ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there "
            f"({reason[0] if reason else type(error).__name__}); start one with "
            "`ray start --head`, or leave cluster.address out"
        ) from None


@contextlib.contextmanager
def _only_visible(kind: str, devices: Devices) -> Iterator[None]:
    """Limit the cluster that is started in the `with` block to a list of accelerators.

    Without a list, NPUs that are broken are left out.
    """
    if not isinstance(devices, list):
        devices = (usable_npus() if kind == "npu" else None) or "auto"
    if kind == "cpu" or not isinstance(devices, list):
        yield
        return
    variable = VISIBLE_DEVICES[kind]
    before = os.environ.get(variable)
    os.environ[variable] = ",".join(map(str, devices))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


def visible_npus() -> list[int] | None:
    """The device numbers that ASCEND_RT_VISIBLE_DEVICES names; `None` if it names none."""
    words = os.environ.get(VISIBLE_DEVICES["npu"], "").split(",")
    return [int(word) for word in words] if all(map(str.isdecimal, words)) else None


def usable_npus() -> list[int] | None:
    """The device numbers of this host's NPUs that are not broken; `None` if none has to be named.

    Raises:
        UserError: all NPUs that this process sees are broken.
    """
    numbers = usable_numbers(read_npus(), visible_npus())
    if numbers == []:
        raise UserError(
            f"{VISIBLE_DEVICES['npu']}={os.environ.get(VISIBLE_DEVICES['npu'], '')}: npu-smi says "
            "that the health of these chips is Critical; name others, or choose a CPU backend "
            "(backend=openvino)"
        )
    return numbers


def _own_accelerators(kind: str) -> dict[str, float] | None:
    """The NPUs that Ray is told of when it starts a cluster on this machine.

    Ray finds GPUs itself. It finds NPUs only if the toolkit's Python package or the device files
    are there.
    """
    if kind != "npu":
        return None
    visible = os.environ.get(VISIBLE_DEVICES[kind])
    count = len(visible.split(",")) if visible else len(list_npus())
    return {"NPU": count} if count else None


def end_autoscaler() -> None:
    """Kill Ray's autoscaler process, a child of this process that one machine has no use for.

    The process ignores Ray's request to end, and `ray.shutdown` waits for it before it kills it.
    Ray has no option to start a cluster without it. Measured on 2 cores, medians of three
    alternating sessions: `ray.shutdown` takes 0.35 s without the process and 1.35 s with it.
    """
    import psutil

    script = os.path.join("autoscaler", "_private", "monitor.py")
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(part.endswith(script) for part in process.cmdline()):
                process.kill()

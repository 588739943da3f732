"""The Ray cluster that a run uses: started here, or one that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cfdist.distributed.accelerators import chosen, only_visible, resources
from cfdist.distributed.head import head_watched, shut_down
from cfdist.distributed.joining import join_ray
from cfdist.distributed.plan import Auto, Devices
from cfdist.distributed.starting import check_loopback, prepare_environment, ray_folder, start_ray
from cfdist.errors import UserError
from cfdist.monitoring import terminal
from cfdist.monitoring.terminal import say

if TYPE_CHECKING:
    from cfdist.distributed.work import KeptPictures

log = logging.getLogger(__name__)

WAIT_SECONDS = 30.0  # for what a cluster has lost


@dataclass
class SharedSession:
    """A Ray session that stays open for the runs of a sweep while they want the same one.

    Attributes:
        settings: What the session was started with; a run that wants others gets a new session.
        pictures: The letterboxed pictures that the sweep's runs so far have left.
        idle: Name -> (actor, what it was made as), see `cfdist.distributed.actors`.
    """

    settings: tuple[object, ...]
    stack: contextlib.ExitStack
    dashboard: str | None
    pictures: KeptPictures | None = None
    idle: dict[str, tuple[Any, tuple[type, Mapping[str, Any]]]] = field(default_factory=dict)


_shares_sessions = False
_shared: SharedSession | None = None


def share_sessions(shares: bool = True) -> None:
    """Let `session` leave a session open for the next run, until `close_shared_session`; or not."""
    global _shares_sessions
    _shares_sessions = shares


def shares_sessions() -> bool:
    """Whether the next runs share a session."""
    return _shares_sessions


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
    address: str | None,
    dashboard: bool | Auto,
    kind: str = "cpu",
    devices: Devices = "auto",
    wait_s: float = WAIT_SECONDS,
) -> Iterator[str | None]:
    """The Ray session of a run: its own, or the one that the runs of a sweep share.

    Args:
        address: "auto", "host:port", or `None` for a cluster of the run's own.
        dashboard: Whether that cluster has Ray's dashboard; "auto": on a terminal.
        kind: "cpu", "gpu" or "npu": what the run's devices are.
        devices: As in the configuration; with a list, that cluster sees only those accelerators,
            which are counted within what a scheduler allotted.
        wait_s: How long to wait for a head that does not answer, seconds.

    Yields:
        The dashboard's URL, or `None` without one.

    Raises:
        UserError: no cluster answers at `address`, Ray does not start here, or `devices` names
            accelerators that are not there.
        StoppedError: the cluster's head is gone.
    """
    global _shared
    if not _shares_sessions:
        with own_session(address, dashboard, kind, devices) as url, head_watched(wait_s):
            yield url
        return
    settings = (address, dashboard, kind, devices if isinstance(devices, list) else None)
    if _shared is not None and _shared.settings != settings:
        close_shared_session()
    if _shared is None:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(own_session(address, dashboard, kind, devices))
            _shared = SharedSession(settings, stack.pop_all(), url)
    with head_watched(wait_s):
        yield _shared.dashboard


@contextlib.contextmanager
def own_session(
    address: str | None, dashboard: bool | Auto, kind: str, devices: Devices
) -> Iterator[str | None]:
    """Connect to a cluster, or start one on this machine; leave it at the end. See `session`.

    A session that runs already (several jobs in one process) is used and left running.
    """
    prepare_environment()
    _announce(address)
    import ray

    # Ray logs a traceback and goes on if the toolkit's package `acl` is missing.
    logging.getLogger("ray._private.accelerators.npu").setLevel(logging.CRITICAL)
    _log_what_ray_prints()
    if ray.is_initialized():
        yield None
        return
    names = chosen(kind, devices) if address is None and kind != "cpu" else None
    with only_visible(kind, names):
        if address is None:
            wants_dashboard = terminal.out().isatty() if dashboard == "auto" else dashboard
            context = start_ray(wants_dashboard, resources(kind, names))
        else:
            context = join_ray(address)
        try:
            yield f"http://{context.dashboard_url}" if context.dashboard_url else None
        finally:
            if address is None:
                end_autoscaler()
            shut_down()


def _log_what_ray_prints() -> None:
    """Send what Ray's node processes tell the driver to the run's log: Ray prints it otherwise."""
    from ray._private import worker

    def note(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            log.warning("Ray: %s", line.strip())

    worker.print_to_stdstream = note


def _announce(address: str | None) -> None:
    """Say that Ray is started here, which takes a second and more, unless it is there already.

    Raises:
        UserError: Ray will not take this process's command line, or cannot start here.
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
    if address is None:
        check_loopback()
        ray_folder()
        if "ray" not in sys.modules:
            say("starting Ray ...")


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

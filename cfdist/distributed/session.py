"""The Ray cluster that a run uses: started here, or one that is there already."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdist.distributed import keeping
from cfdist.distributed.accelerators import chosen, only_visible, resources
from cfdist.distributed.head import end_left_session, head_watched, shut_down
from cfdist.distributed.joining import join_ray
from cfdist.distributed.plan import Auto, Devices
from cfdist.distributed.starting import (
    check_loopback,
    loudness,
    prepare_environment,
    ray_folder,
    start_ray,
)
from cfdist.errors import UserError
from cfdist.monitoring import terminal
from cfdist.monitoring.metrics import Recorder
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


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Share a session between the runs of the `with` block, as a sweep's do; end it after them."""
    if _shares_sessions:  # a sweep's own, which ends it
        yield
        return
    share_sessions()
    try:
        yield
    except BaseException as error:
        share_sessions(False)
        with contextlib.suppress(Exception):
            close_shared_session(error)
        raise
    share_sessions(False)
    close_shared_session()


def shares_sessions() -> bool:
    """Whether the next runs share a session."""
    return _shares_sessions


def shared_session() -> SharedSession | None:
    """The open session of a sweep; `None` if each run has its own."""
    return _shared


def close_shared_session(error: BaseException | None = None) -> None:
    """End the session that the runs of a sweep share, if there is one.

    After an error, which is raised again, it is not left to later commands.
    """
    global _shared
    shared, _shared = _shared, None
    if shared is not None:
        shared.pictures = None
        shared.stack.__exit__(type(error) if error else None, error, None)


@contextlib.contextmanager
def session(
    address: str | None,
    dashboard: bool | Auto,
    kind: str = "cpu",
    devices: Devices = "auto",
    wait_s: float = WAIT_SECONDS,
    keep_minutes: float | None = None,
) -> Iterator[str | None]:
    """The Ray session of a run: its own, or the one that the runs of a sweep share.

    Args:
        address: "auto", "host:port", or `None` for a cluster of the run's own.
        dashboard: Whether that cluster has Ray's dashboard; "auto": on a terminal.
        kind: "cpu", "gpu" or "npu": what the run's devices are.
        devices: As in the configuration; with a list, that cluster sees only those accelerators,
            which are counted within what a scheduler allotted.
        wait_s: How long to wait for a head that does not answer, seconds.
        keep_minutes: How long that cluster stays for later commands, see `keeping`.

    Yields:
        The dashboard's URL, or `None` without one.

    Raises:
        UserError: no cluster answers at `address`, Ray does not start here, or `devices` names
            accelerators that are not there.
        StoppedError: the cluster's head is gone.
    """
    global _shared
    own = (address, dashboard, kind, devices, keep_minutes)
    if not _shares_sessions:
        with own_session(*own) as url, head_watched(wait_s):
            yield url
        return
    numbers = devices if isinstance(devices, list) else None
    settings = (address, dashboard, kind, numbers, keep_minutes)
    if _shared is not None and _shared.settings != settings:
        close_shared_session()
    if _shared is None:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(own_session(*own))
            _shared = SharedSession(settings, stack.pop_all(), url)
    with head_watched(wait_s):
        yield _shared.dashboard


@contextlib.contextmanager
def own_session(
    address: str | None,
    dashboard: bool | Auto,
    kind: str,
    devices: Devices,
    keep_minutes: float | None = None,
) -> Iterator[str | None]:
    """Connect to a cluster, or start one on this machine; leave it at the end. See `session`.

    A session that runs already (several jobs in one process) is used and left running.
    """
    prepare_environment()
    _check(address)
    end_left_session()
    keeping.give_back()
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        with _logging_what_ray_prints():
            yield None
        return
    names = chosen(kind, devices) if address is None and kind != "cpu" else None
    kept: keeping.Kept | None = None
    is_sound = False
    with only_visible(kind, names), contextlib.ExitStack() as until_end:
        if address is None:
            wants_dashboard = terminal.out().isatty() if dashboard == "auto" else dashboard
            wanted = (wants_dashboard, kind, resources(kind, names), loudness())
            path = keeping.record_path(wanted, makes=bool(keep_minutes))
            kept = keeping.find(path, keep_minutes)
            _announce(kept)
            until_end.enter_context(_logging_what_ray_prints())
            context, kept = _here(wants_dashboard, wanted[2], path, kept, keep_minutes)
        else:
            until_end.enter_context(_logging_what_ray_prints())
            context = join_ray(address)
        Recorder.hold()
        try:
            yield f"http://{context.dashboard_url}" if context.dashboard_url else None
            is_sound = True
        except (KeyboardInterrupt, UserError):
            is_sound = True
            raise
        finally:
            if kept is not None and is_sound:
                with contextlib.suppress(Exception):  # the next command starts them itself
                    kept.make_ready()
            shut_down(kept is not None and is_sound)
            if kept is not None:
                kept.leave(is_sound)


@contextlib.contextmanager
def _logging_what_ray_prints() -> Iterator[None]:
    """Send what Ray's node processes tell the driver to the run's log: Ray prints it otherwise.

    After the `with` block it does again: the process may be somebody else's.
    """
    from ray._private import worker

    def note(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            log.warning("Ray: %s", line.strip())

    before, worker.print_to_stdstream = worker.print_to_stdstream, note
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _announce(kept: keeping.Kept | None) -> None:
    """Say what comes next, before Ray is imported, which takes a second."""
    if kept is not None:
        say("using the Ray session that an earlier command left ...")
    elif "ray" not in sys.modules:
        say("starting Ray ...")
    # Ray logs a traceback and goes on if the toolkit's package `acl` is missing.
    logging.getLogger("ray._private.accelerators.npu").setLevel(logging.CRITICAL)


def _here(
    dashboard: bool,
    accelerators: dict[str, object],
    path: Path | None,
    kept: keeping.Kept | None,
    keep_minutes: float | None,
) -> tuple[Any, keeping.Kept | None]:
    """What `ray.init` returns for a session on this machine, and the session if it is kept."""
    if kept is not None and (context := keeping.connect(kept)) is not None:
        return context, kept
    if keep_minutes and path is None:
        say("note: cluster.keep_minutes: no folder of this user's own for it")
    # One that is there is used by another command: this one has its own.
    if keep_minutes and path is not None and not path.exists():
        return keeping.start(path, keep_minutes, dashboard, accelerators)
    return start_ray(dashboard, accelerators), None


def _check(address: str | None) -> None:
    """Refuse what Ray would refuse at length.

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

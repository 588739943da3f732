"""The Ray cluster that a run uses: started here, or one that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cfdist.ascend.npu_smi import list_npus
from cfdist.errors import UserError, raise_terminated
from cfdist.machine import available_cores, available_memory

# What an actor of each kind of device asks Ray for, beside CPUs.
ACCELERATOR_RESOURCE = {"cpu": None, "gpu": "GPU", "npu": "NPU"}

# Names the devices that a process sees; inside, they are numbered from 0.
VISIBLE_DEVICES = {"gpu": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}

CORES_PER_AUTO_DEVICE = 8

# Chunks a device holds beyond those in inference: one being read, one on its way out.
AHEAD = 2

_AUTOSCALER = os.path.join("autoscaler", "_private", "monitor.py")


@dataclass(frozen=True)
class DevicePlan:
    """How the devices of a run are laid out.

    Attributes:
        kind: "cpu", "gpu" or "npu".
        count: Device actors.
        threads: CPU threads each for inference.
        slots: Inferences each takes at once.
        feeders: Threads each that read pictures.
        cpus: What each actor asks of Ray's CPUs.
    """

    kind: str
    count: int
    threads: int
    slots: int
    feeders: int
    cpus: float

    @property
    def window(self) -> int:
        """Chunks a device holds at once, at most."""
        return self.slots + AHEAD


@dataclass
class KeptSession:
    """A Ray session that stays open for the members of a sweep, as long as they want the same.

    Attributes:
        settings: What it was started with; a member that wants others gets a new one.
        stack: Ends it.
        dashboard: The dashboard's URL, or `None` without one.
        actors: Name -> (idle actor, what it was made as), see `cfdist.distributed.actors`.
        pictures: What `cfdist.distributed.picture_cache` keeps for the members to come.
        given_up: Bytes that were kept and given up: the store has them still, for other pictures.
    """

    settings: tuple
    stack: contextlib.ExitStack
    dashboard: str | None
    actors: dict[str, tuple[Any, tuple]] = field(default_factory=dict)
    pictures: Any = None
    given_up: int = 0


_keeps_sessions = False
_kept: KeptSession | None = None


def keep_sessions() -> None:
    """From now on `session` leaves what it has started open, until `close_kept_session`."""
    global _keeps_sessions
    _keeps_sessions = True


def kept_session() -> KeptSession | None:
    """The open session of a sweep; `None` where each run has its own."""
    return _kept


def kept_bytes() -> int:
    """What the object store holds for what the members of a sweep have left there so far."""
    if _kept is None:
        return 0
    return max(_kept.given_up, _kept.pictures.used if _kept.pictures is not None else 0)


def give_up_kept_pictures() -> None:
    """Let the object store free what the members of a sweep have left there."""
    if _kept is not None:
        _kept.given_up = kept_bytes()
        _kept.pictures = None


def close_kept_session() -> None:
    """End the session that the members of a sweep have shared, if there is one."""
    global _kept
    kept, _kept = _kept, None
    if kept is not None:
        kept.stack.close()


@contextlib.contextmanager
def session(
    address: str | None,
    dashboard: bool | str,
    kind: str = "cpu",
    devices: int | str | list[int] = "auto",
) -> Iterator[str | None]:
    """The Ray session of a run: its own, or the one that the members of a sweep share.

    Args and yields are those of `own_session`.

    Raises:
        UserError: no cluster answers at `address`.
    """
    global _kept
    if not _keeps_sessions:
        with own_session(address, dashboard, kind, devices) as url:
            yield url
        return
    settings = (address, dashboard, kind, devices if isinstance(devices, list) else None)
    if _kept is not None and _kept.settings != settings:
        close_kept_session()
    if _kept is None:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(own_session(address, dashboard, kind, devices))
            _kept = KeptSession(settings, stack.pop_all(), url)
    yield _kept.dashboard


@contextlib.contextmanager
def own_session(
    address: str | None,
    dashboard: bool | str,
    kind: str = "cpu",
    devices: int | str | list[int] = "auto",
) -> Iterator[str | None]:
    """Connect to the cluster at `address`, or start one on this machine; leave it at the end.

    A session that runs already (several jobs in one process) is used and left running.

    Args:
        address: "auto", "host:port", or `None` for a cluster of the run's own.
        dashboard: Whether that cluster has Ray's dashboard; "auto": where somebody looks on.
        kind: "cpu", "gpu" or "npu": what the run's devices are.
        devices: As in the configuration; with a list, that cluster sees only those accelerators.

    Yields:
        The dashboard's URL, or `None` without one.

    Raises:
        UserError: no cluster answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The device actors decide themselves which devices they see.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's node process connects to its own object store, in two starts of five a moment too early,
    # and then waits a second before it tries again. Shorter waits, as many seconds in all.
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
    import ray

    # Where the toolkit's package `acl` is missing, Ray logs a traceback and goes on.
    logging.getLogger("ray._private.accelerators.npu").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield None
        return
    quiet = {"configure_logging": True, "logging_level": logging.ERROR, "log_to_driver": False}
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
            signal.signal(signal.SIGTERM, raise_terminated)
        try:
            yield f"http://{context.dashboard_url}" if context.dashboard_url else None
        finally:
            if address is None:
                _end_autoscaler()
            ray.shutdown()


def _join(address: str, options: dict[str, Any]) -> Any:
    """Connect to a cluster that is there; returns what `ray.init` does.

    Raises:
        UserError: no cluster answers at `address`.
    """
    import ray

    _knock(address)
    try:
        return ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there "
            f"({reason[0] if reason else type(error).__name__}); start one with "
            "`ray start --head`, or leave cluster.address out"
        ) from None


def _end_autoscaler() -> None:
    """End the autoscaler of a cluster of one machine, which has nothing to scale.

    It does not heed Ray's request to end, and `ray.shutdown` waits a second before it insists.
    """
    import psutil

    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(part.endswith(_AUTOSCALER) for part in process.cmdline()):
                process.kill()


@contextlib.contextmanager
def _only_visible(kind: str, devices: int | str | list[int]) -> Iterator[None]:
    """Limit the cluster that is started in the `with` block to a list of accelerators."""
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


def _own_accelerators(kind: str) -> dict[str, int] | None:
    """What a cluster on this machine is told of its NPUs.

    Ray finds GPUs itself, NPUs only where the toolkit's Python package or the device files are.
    """
    if kind != "npu":
        return None
    visible = os.environ.get(VISIBLE_DEVICES[kind])
    count = len(visible.split(",")) if visible else len(list_npus())
    return {"NPU": count} if count else None


def _knock(address: str) -> None:
    """See whether anything listens at "host:port": Ray itself tries for minutes.

    Raises:
        UserError: nothing does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.rpartition("//")[2], int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there ({error}); start one with "
            "`ray start --head`, or leave cluster.address out"
        ) from None


def is_death(error: Exception) -> bool:
    """Whether an actor's process is gone: it died, is out of reach, or Ray ended it for memory.

    Not where what it was doing has met with the death of another.
    """
    import ray

    # Ended for memory is no `RayActorError`.
    deaths = ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError
    return isinstance(error, deaths) and not isinstance(error, ray.exceptions.RayTaskError)


def user_error(error: Exception) -> Exception:
    """The `UserError` inside an error that came through Ray, which makes a traceback of it."""
    import ray

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return UserError(
            "out of memory: Ray ended a process because its machine has hardly any memory left; "
            "choose a smaller model.batch, fewer devices or backend.streams=1"
        )
    cause = getattr(error, "cause", None)
    return UserError(str(cause)) if isinstance(cause, UserError) else error


def plan_devices(
    kind: str,
    devices: int | str | list[int],
    *,
    feeders: int | str,
    streams: int | str,
    slot_bytes: int,
) -> DevicePlan:
    """Share the cluster's cores between the devices asked for.

    Args:
        kind: "cpu", "gpu" or "npu".
        devices: A number, a list of one entry a device, or "auto": every accelerator, or one
            CPU device for each 8 cores.
        feeders: Reading threads a device, or "auto": its share of the cores.
        streams: Inferences a device takes at once, or "auto": for a CPU device as many as it has
            threads, as far as half of the free memory goes.
        slot_bytes: What one more inference at once takes, see `memory.slot_bytes`.

    Raises:
        UserError: the cluster has fewer accelerators than asked for.
    """
    import ray

    there = ray.cluster_resources()
    cores = max(1, int(there.get("CPU", 1)))
    resource = ACCELERATOR_RESOURCE[kind]
    accelerators = int(there.get(resource, 0)) if resource else 0
    if devices == "auto":
        count = accelerators if resource else max(1, cores // CORES_PER_AUTO_DEVICE)
    else:
        count = len(devices) if isinstance(devices, list) else int(devices)
    if (resource and count > accelerators) or count == 0:
        raise UserError(
            f"devices={devices}: Ray sees {accelerators} {resource} on this cluster; ask for at "
            "most that many, or choose a CPU backend (backend=openvino)"
        )
    threads = max(1, cores // count)
    if streams == "auto":
        streams = _streams_in_memory(threads, count, slot_bytes) if kind == "cpu" else 1
    return DevicePlan(
        kind,
        count,
        threads,
        int(streams),
        threads if feeders == "auto" else int(feeders),
        # Ray counts in ten-thousandths.
        int(min(cores / count, threads) * 10_000) / 10_000,
    )


def _streams_in_memory(threads: int, count: int, slot_bytes: int) -> int:
    # Pictures that are kept give way; and no member of a sweep should get fewer for them.
    free = available_memory() + kept_bytes()
    return max(1, min(threads, free // 2 // count // slot_bytes))

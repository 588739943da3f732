"""A Ray session that one command leaves to the next ones (`cluster.keep_minutes`).

Its record is a file in the user's own runtime folder, which nobody else can read. Only a command of
the same user and checkout looks there, and takes the session if it would start the same one: the
same versions, sources, accelerators, cores and environment. One command uses it at a time; another
one has its own meanwhile. Its token is its own, so that no other program of the user joins it.

The session's guard ends it: when nobody has used it for so long, or as soon as the record is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from cfdist.distributed import guard
from cfdist.distributed.joining import answer_of, own_token
from cfdist.distributed.processes import interruptible, loopback_only
from cfdist.distributed.starting import forget_token, loudness, start_ray
from cfdist.machine import SUBMITTED_JOB, available_cores, sources_digest
from cfdist.monitoring.terminal import say

log = logging.getLogger(__name__)

_CHECKOUT = Path(__file__).resolve().parents[2]

# What differs between terminals, and nothing that a session's processes do depends on.
_OF_THE_TERMINAL = frozenset(
    (
        *("_", "PWD", "OLDPWD", "SHLVL", "TERM", "COLORTERM", "COLUMNS", "LINES", "PS1", "PS2"),
        *("PROMPT_COMMAND", "HISTFILE", "HISTSIZE", "LS_COLORS", "LESSOPEN", "LESSCLOSE", "PAGER"),
        *("EDITOR", "VISUAL", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "WINDOWID"),
        *("DBUS_SESSION_BUS_ADDRESS", "TMUX", "TMUX_PANE", "STY", "MAIL", "INVOCATION_ID"),
        *("JOURNAL_STREAM", "NO_COLOR", "FORCE_COLOR", "PYTEST_CURRENT_TEST", "CFDIST_MARK"),
        *("CFDIST_STARTED", "CFDIST_COMMAND", "SPT_NOENV"),
    )
)
_PREFIXES_OF_THE_TERMINAL = ("SSH_", "TERM_", "VSCODE_", "GNOME_", "KITTY_", "KONSOLE_", "XDG_SESS")

_SECONDS_TO_END = 5.0  # that a session may take to end when its record is gone

# Ray's own way to have workers started that no call waits for.
_START_WORKERS = "/ray.rpc.NodeManagerService/PrestartWorkers"

# Of this process while it uses a session that has a token of its own.
_TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True)
class Record:
    """A session that is kept, as its file says it.

    Attributes:
        mark: That of its processes and its guard.
        folder: Its folder.
        address: Where its head listens.
        raylet: The socket of its node process.
        minutes: How long it stays without a command.
        token: The file with its token; empty if it asks for none, or for another one.
    """

    mark: str
    folder: str
    address: str
    raylet: str
    minutes: float
    token: str


@dataclass
class Kept:
    """A session that this process uses, and leaves to the next command.

    Attributes:
        path: Of its record.
        used: The lock by which it is this process's, a descriptor.
        keeper: Its guard, if this process has started it.
    """

    path: Path
    record: Record
    used: int
    keeper: guard.Guard | None = None
    _before: dict[str, str] = field(default_factory=dict)

    def take_token(self) -> None:
        """Let Ray show the session's token."""
        self._before = {name: os.environ[name] for name in _TOKEN if name in os.environ}
        if self.record.token:
            os.environ |= dict(zip(_TOKEN, ("token", self.record.token), strict=True))

    def make_ready(self) -> None:
        """Have processes started for the next command's actors, as many as this one has had.

        They import what actors need, and wait. Nobody waits for them.
        """
        import ray
        from ray._private.state import actors
        from ray.core.generated import node_manager_pb2

        job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
        count = min(len(actors(job_id=job)), available_cores() + 1)
        if not count:
            return
        (node,) = ray.nodes()  # type: ignore[no-untyped-call]
        wanted = node_manager_pb2.PrestartWorkersRequest(  # type: ignore[attr-defined]
            num_workers=count, keep_alive_duration_secs=round(60 * self.record.minutes)
        )
        address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        answer = answer_of(address, own_token(), _START_WORKERS, wanted.SerializeToString())
        log.info("%d processes are started for the next command: %s", count, answer)

    def leave(self, is_sound: bool = True) -> None:
        """Give it back; a session that may be broken ends."""
        if not is_sound:
            self.path.unlink(missing_ok=True)
        for name in _TOKEN:
            os.environ.pop(name, None)
        os.environ |= self._before
        _left.append(self.used)
        give_back()
        if self.keeper:
            self.keeper.let_go()


_left: list[int] = []  # the locks of sessions that this process has left, but Ray has not


def give_back() -> None:
    """Give the sessions that this process has left back, once Ray has left them, too.

    Where it has not, they are given back as this process ends.
    """
    while _left and not guard.has_left_ray():
        os.close(_left.pop())


def runtime_folder(makes: bool = False) -> Path | None:
    """Where this user's records are, which nobody else can read; `None` if there is no such place.

    It is in XDG_RUNTIME_DIR, or else in the folder for temporary files, and made if that is wanted.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    folder = (
        Path(given, "cfdist")
        if given
        else Path(tempfile.gettempdir(), f"cfdist-of-user-{os.geteuid()}")
    )
    try:
        if makes:
            folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
    return folder if is_private and status.st_uid == os.geteuid() else None


def record_path(wanted: object, makes: bool = False) -> Path | None:
    """The record of the session that this command would start; `None`: no place for one.

    Args:
        wanted: What decides, beside versions, sources, cores and environment.
        makes: Whether to make the place.
    """
    folder = runtime_folder(makes)
    if folder is None:
        return None
    here = os.stat(".")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    names = sorted(
        name
        for name in os.environ
        if name not in _OF_THE_TERMINAL and not name.startswith(_PREFIXES_OF_THE_TERMINAL)
    )
    parts = (
        wanted,
        (metadata.version("ray"), platform.python_version(), sys.executable, sys.flags),
        sources_digest(),
        (socket.gethostname(), available_cores(), sorted(cores)),
        (here.st_dev, here.st_ino, os.getcwd()),
        [(name, os.environ[name]) for name in names],
    )
    digest = hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()
    return folder / f"{_of_checkout()}-{digest[:32]}.json"


def _of_checkout() -> str:
    return hashlib.sha256(os.fsencode(_CHECKOUT)).hexdigest()[:12]


def find(path: Path | None, minutes: float | None) -> Kept | None:
    """The session of a record, if there is one that lives and that nobody uses; it is locked.

    Args:
        path: See `record_path`.
        minutes: How long it stays from now on; `None`: as before; 0: all of this checkout end.
    """
    if path is None or minutes == 0:
        if minutes == 0:
            end_kept_sessions()
        return None
    record = _read(path)
    if record is None:
        path.unlink(missing_ok=True)
        return None
    used = _lock(record)
    if used is None:
        return None
    # Its guard may have ended it meanwhile.
    if _read(path) != record or not is_alive(record):
        say("note: the Ray session that an earlier command left has ended")
        path.unlink(missing_ok=True)
        if used >= 0:
            os.close(used)
        return None
    if minutes is not None and minutes != record.minutes:
        record = replace(record, minutes=minutes)
        _write(path, record)
    return Kept(path, record, used)


def _lock(record: Record) -> int | None:
    """The lock of a session; `None` if another command uses it, -1 if it is gone."""
    for _ in range(20):  # its guard looks whether it is used
        try:
            return guard.use(Path(record.folder))
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return -1
    return None


def is_alive(record: Record) -> bool:
    """Whether a session's guard, head and node process are there."""
    try:
        os.close(guard.hold(Path(record.folder), is_alone=True))
        return False  # nobody would end it
    except BlockingIOError:
        pass
    except OSError:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as node:
            node.connect(record.raylet)
        token = Path(record.token).read_text() if record.token else ""
    except OSError:
        return False
    speaks_otherwise = not token or os.environ.get("RAY_USE_TLS", "0") != "0"
    return speaks_otherwise or answer_of(record.address, token) == "OK"


def connect(kept: Kept) -> Any:
    """Connect to a session that was kept; `None`, with a note, if that fails."""
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    os.environ.pop(SUBMITTED_JOB, None)
    kept.take_token()
    Config.initialize("")  # Ray may have read the environment already
    forget_token()
    try:
        with loopback_only(), interruptible():
            return ray.init(address=kept.record.address, **loudness())
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        log.warning("no connection to the kept session", exc_info=error)
        say("note: the Ray session that an earlier command left is broken")
        with contextlib.suppress(Exception):
            ray.shutdown()
        kept.leave(is_sound=False)
        return None


def start(
    path: Path, minutes: float, dashboard: bool, accelerators: Mapping[str, Any]
) -> tuple[Any, Kept]:
    """Start a session that is kept; returns what `ray.init` does, and the session, locked."""
    import ray

    keeper = guard.Guard(marks_all=False)
    before = {name: os.environ[name] for name in _TOKEN if name in os.environ}
    try:
        context = start_ray(dashboard, accelerators, keeper)
        assert keeper.folder is not None
        (keeper.folder / guard.IN_USE).touch(mode=0o600)
        token = os.environ.get(_TOKEN[1], "")
        is_own = token.startswith(f"{keeper.folder}/")
        record = Record(
            keeper.session,
            str(keeper.folder),
            ray.get_runtime_context().gcs_address,
            context.address_info["raylet_socket_name"],
            minutes,
            token if is_own else "",
        )
        kept = Kept(path, record, guard.use(keeper.folder), keeper, before)
        _write(path, record)
        keeper.keep(path)
    except BaseException:
        keeper.end()
        raise
    return context, kept


def end_kept_sessions() -> None:
    """End the sessions of this user and checkout; one that is used ends with its command."""
    folder = runtime_folder()
    records = folder.glob(f"{_of_checkout()}-*.json") if folder else ()
    for path in records:
        record = _read(path)
        path.unlink(missing_ok=True)
        deadline = time.monotonic() + _SECONDS_TO_END
        while record and Path(record.folder).exists() and time.monotonic() < deadline:
            if (used := _lock(record)) is None:
                break
            if used >= 0:
                os.close(used)
            time.sleep(0.05)


def _read(path: Path) -> Record | None:
    """A record; `None` if there is none, or another version's."""
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, record: Record) -> None:
    """Write a record, whole or not at all, for this user's eyes alone."""
    descriptor, name = tempfile.mkstemp(prefix=".record_", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(record), file)
    os.replace(name, path)

"""Starting Ray on this machine: its settings, folder and token, and what may prevent it.

The session serves one command: it listens on the loopback interface alone, and no other command
joins it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from cfdist.distributed import guard as guarding
from cfdist.distributed.guard import Guard, clear_dead, guarded_anew
from cfdist.distributed.processes import (
    LONGEST_START,
    interruptible,
    loopback_only,
    own_processes,
)
from cfdist.errors import DiskFullError, UserError
from cfdist.files import DISK_IS_FULL, redacted
from cfdist.machine import SUBMITTED_JOB, available_cores, available_memory
from cfdist.monitoring import terminal

log = logging.getLogger(__name__)

# Marks the nodes of a session that serves one command.
PRIVATE_LABEL = {"cfdist.session": "private"}

# The environment of Ray's processes; what the user has set stays.
_ENVIRONMENT = {
    # Of a call with two results that fails, only one is asked for; Ray would print the other.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The device actors decide themselves which devices they see.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # In two starts of five Ray's node process connects to its object store a moment too early and
    # waits a second before it tries again. These waits are shorter, and as long in all.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # A driver takes a lost connection for the death of its parent if that is process 1, and ends
    # without a word. Ray gives its own processes their parent's number.
    "RAY_RAYLET_PID": "1",
    # Under `uv run` Ray would start each worker through uv, which takes seconds, and ship the
    # current folder to each node, pictures and all.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray's own limits, from 30 s, are too short where ten commands run at once on two cores.
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_raylet_start_wait_time_s": f"{LONGEST_START:.0f}",
    "RAY_worker_register_timeout_seconds": "180",
    # Workers start while the driver makes what they will do, and as many as are wanted: Ray would
    # first start one a core, and have the driver wait for them.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's own handlers of SIGTERM print a crash report in place of what the signal asks for.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}

# A Unix socket's path has at most 107 bytes. This is the longest that Ray puts into its folder.
_SOCKET_BYTES = 107
_SOCKET_NAME = "/cfdist-a1b2c3/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SHARED_MEMORY = Path("/dev/shm")
_LEAST_FREE_BYTES = 64 << 20  # for Ray's logs
_LEAST_STORE_BYTES = 80 << 20  # Ray refuses less

_LONGEST_WAIT = 300.0  # seconds for the starts of other commands

# Part of the available memory that Ray takes for its object store, as it does itself.
_STORE_SHARE = 0.3

# Ray's node processes write "[time severity process thread] file:line: message".
_LOGGED_ERROR = re.compile(r"^\[[^]]* [EFC] [^]]*\]\s+(?:\(\S+\) )?\S+:\d+: +(.+)$", re.MULTILINE)


def prepare_environment() -> None:
    """Set what Ray's processes take from the environment; called before `ray` is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def start_ray(dashboard: bool, accelerators: Mapping[str, Any], keeper: Guard | None = None) -> Any:
    """Start Ray on this machine, and connect to it.

    Args:
        dashboard: Whether it has a dashboard.
        accelerators: See `accelerators.resources`.
        keeper: The guard of a session that outlives this process; it has a token of its own.

    Returns:
        What `ray.init` does.

    Raises:
        UserError: this machine does not let Ray start.
    """
    # Of a submitted job: Ray would look for its package on this cluster.
    os.environ.pop(SUBMITTED_JOB, None)
    base = ray_folder()
    options = {
        "address": "local",
        "num_cpus": available_cores(),
        "include_dashboard": dashboard,
        "labels": dict(PRIVATE_LABEL),
        **loudness(),
        **_memory_options(),
        **accelerators,
    }
    with loopback_only(), interruptible(), one_start_at_a_time(base):
        clear_dead(base)
        guard = keeper or guarded_anew()
        folder = guard.make_folder(base)
        ensure_token(folder, keeper is not None)
        forget_token()

        def let_guard_speak(node: int) -> None:
            guarding.speak_for(
                node,
                terminal.error_descriptor(),
                lambda how: redacted(f"cfdist: {guarding.NODE_IS_GONE}{how}"),
            )

        try:
            with own_processes(guard.session, keeper is not None, let_guard_speak):
                context = _init({**options, **_folders(folder)}, guard, folder)
        except BaseException:
            guarding.be_silent()
            raise
        folder.chmod(0o700)  # Ray lets all users write to it
        return context


def loudness() -> dict[str, Any]:
    """`ray.init`'s settings of what it and the actors print in this process."""
    is_verbose = terminal.settings.is_verbose
    level = logging.INFO if is_verbose else logging.ERROR
    return {"logging_level": level, "log_to_driver": is_verbose}


def check_loopback() -> None:
    """Make sure that processes of this machine reach each other.

    Raises:
        UserError: the loopback interface is not there or is down; Ray would wait for minutes.
    """
    reasons = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as server:
                server.bind((host, 0))
                server.listen(1)
                socket.create_connection(server.getsockname()[:2], timeout=5).close()
                return
        except OSError as error:
            reasons.append(f"{host}: {error.strerror or error}")
    raise UserError(
        f"this machine's loopback interface does not work ({'; '.join(reasons)}), and Ray's "
        "processes talk over it; bring it up: `ip link set lo up`"
    )


def ray_folder() -> Path:
    """Where the command's folder for Ray goes: the user's temporary folder, or one that works.

    Raises:
        UserError: none works.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), "")
    asked = [os.path.abspath(os.environ[name])] if name else []
    reasons: dict[Path, str] = {}
    for folder in map(Path, dict.fromkeys([*asked, "/tmp", "/var/tmp"])):
        reason = unusable(folder)
        if reason is None:
            for other, why in reasons.items():
                log.warning("Ray's files are in %s, for %s: %s", folder, other, why)
            return folder
        reasons[folder] = reason
    first, why = next(iter(reasons.items()))
    is_full = why.startswith("only ") or why in map(os.strerror, DISK_IS_FULL)
    raise (DiskFullError if is_full else UserError)(
        f"{f'{name}={os.environ[name]}' if name else first}: Ray cannot have its files there "
        f"({why}), nor in {', '.join(map(str, list(reasons)[1:]))}; make room, or name a short, "
        "writable folder: RAY_TMPDIR=..."
    )


def unusable(folder: Path) -> str | None:
    """Why Ray cannot have its files in a command's folder in this one."""
    if len(os.fsencode(folder)) + len(_SOCKET_NAME) > _SOCKET_BYTES:
        return "its path is too long for sockets"
    if not str(folder).isascii():
        return "its path has letters that Ray cannot pass on"
    try:
        with tempfile.TemporaryDirectory(prefix="s", dir=folder) as inner:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(Path(inner, "s")))
            Path(inner, "f").write_bytes(bytes(4096))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return error.strerror or str(error)
    if free < _LEAST_FREE_BYTES:
        return f"only {free / 1e6:.0f} MB are free"
    return None


def ensure_token(folder: Path, is_own: bool = False) -> None:
    """See to the token that Ray asks of whoever connects.

    Ray makes one itself, but several commands that start at once would overwrite each other's, and
    none can start where the home folder cannot be written to.

    Args:
        folder: Takes the token if the home folder cannot.
        is_own: The token is no other program's, and lies in the folder.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token" or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    home = os.environ.get("HOME")
    if home and not is_own:
        with contextlib.suppress(OSError):
            path = Path(home, ".ray", "auth_token")
            if not (path.is_file() and path.read_text().strip()):
                path.parent.mkdir(parents=True, exist_ok=True)
                written = _write_token(path.parent)
                try:
                    with contextlib.suppress(FileExistsError):  # another command was first
                        os.link(written, path)
                finally:
                    written.unlink()
            path.read_text()
            return
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(_write_token(folder))


def forget_token() -> None:
    """Let Ray read the token anew: its processes will, and one of another session may differ."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()


def _write_token(folder: Path) -> Path:
    """A new file in a folder, with a new token that only this user can read."""
    descriptor, path = tempfile.mkstemp(prefix=".token_", dir=folder)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return Path(path)


def token_command() -> str | None:
    """The command that prints the token the dashboard asks for; `None` if it asks for none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    # In another terminal, which does not have this process's environment.
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return f"cat {shlex.quote(path)}"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return 'echo "$RAY_AUTH_TOKEN"'
    return f"{shlex.quote(str(Path(sys.executable).with_name('ray')))} get-auth-token"


@contextlib.contextmanager
def one_start_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other command of this machine is starting Ray, or `_LONGEST_WAIT` has passed.

    A start takes seconds of processor time and has limits within Ray that nobody can change: of ten
    at once on two cores none ends in time.
    """
    with contextlib.ExitStack() as until_end:
        with contextlib.suppress(OSError):  # no locks here
            lock = os.open(folder, os.O_RDONLY)
            until_end.callback(os.close, lock)
            deadline = time.monotonic() + _LONGEST_WAIT
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.05)
        yield


def _folders(folder: Path) -> dict[str, str]:
    """Where Ray puts its files; the object store, too, if there is no shared memory to write to."""
    try:
        with tempfile.TemporaryFile(dir=_SHARED_MEMORY):
            return {"_temp_dir": str(folder)}
    except OSError:  # Ray would take it all the same, and its node's process would abort
        return {"_temp_dir": str(folder), "_plasma_directory": str(folder)}


def _memory_options() -> dict[str, Any]:
    """The object store's size where a limit holds that Ray does not see.

    Ray reads the limit of the topmost control group alone, and would give its store, whose pages
    count within the limit, a part of the whole machine's memory.
    """
    free = available_memory()
    if free >= psutil.virtual_memory().available:
        return {}
    store = int(free * _STORE_SHARE)
    with contextlib.suppress(OSError):
        store = min(store, int(shutil.disk_usage(_SHARED_MEMORY).free * 0.95))
    return {"object_store_memory": max(store, _LEAST_STORE_BYTES)}


def _init(options: Mapping[str, Any], guard: Guard, folder: Path) -> Any:
    """`ray.init`, tried a second time if the first fails.

    Two processes may have chosen the same port, or one of Ray's may have been too slow.

    Raises:
        UserError: both fail.
    """
    import ray

    for attempt in (1, 2):
        before = set(psutil.Process().children(recursive=True))
        try:
            return ray.init(**options)
        except Exception as error:
            cause = _cause(error, folder)
            log.warning("Ray did not start (attempt %d): %s", attempt, cause, exc_info=error)
            _end_what_was_started(before)
    guard.keep_folder()
    raise UserError(
        f"Ray does not start on this machine: {cause}; its logs are in {_own_logs(folder)}"
    )


def _end_what_was_started(before: set[psutil.Process]) -> None:
    """End what a failed start has left: processes that were not there before it."""
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()
    started = set(psutil.Process().children(recursive=True)) - before
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(started, timeout=10)


def _own_logs(folder: Path) -> Path:
    """The log folder of this process's last session."""
    sessions = sorted(folder.glob(f"session_*_{os.getpid()}"))
    return (sessions[-1] if sessions else folder) / "logs"


def _cause(error: Exception, folder: Path) -> str:
    """What Ray's node processes logged last as an error; without that, what `ray.init` raised."""
    lines = [line.strip()[:300] for line in str(error).splitlines() if line.strip()]
    raised = " ".join(dict.fromkeys(lines[:1] + lines[-1:])) or type(error).__name__
    logged = ""
    for name in ("gcs_server.out", "raylet.out", "gcs_server.err", "raylet.err"):
        with contextlib.suppress(OSError):
            found = _LOGGED_ERROR.findall((_own_logs(folder) / name).read_text(errors="replace"))
            logged = found[-1] if found else logged
    return f"{raised} ({logged[:300]})" if logged else raised

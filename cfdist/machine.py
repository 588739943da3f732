"""The cores and memory that this process may use, and what processes have used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")

# Ray sets it in the environment of a submitted job's command alone.
SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"

_CHECKOUT = Path(__file__).resolve().parents[1]

# (process id, start time) -> seconds of processor time. The system reuses process ids.
ProcessTimes = dict[tuple[int, float], float]


def available_cores(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """CPU cores that this process may use: affinity and cgroup v1 or v2 quota, at least 1.

    Args:
        cgroup: Where the control groups are mounted.
        membership: The file that says which of them this process is in.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for folder in _groups(cgroup, membership, "cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            # Without a quota version 2 says "max", and version 1 -1.
            with contextlib.suppress(OSError, ValueError):
                text = " ".join((folder / name).read_text() for name in names)
                quota, period = map(int, text.split())
                if quota > 0 and period > 0:
                    cores = min(cores, quota // period)
    return max(1, cores)


def cpu_model(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in info.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            # "Hardware" and "Model" are what kernels for ARM say, if they say anything.
            if name.strip() in ("model name", "Hardware", "Model", "cpu model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def available_memory(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Bytes of memory that are free to use now, cgroup v1 or v2 limits included.

    Args:
        cgroup: Where the control groups are mounted.
        membership: The file that says which of them this process is in.
    """
    free = int(psutil.virtual_memory().available)
    for folder in _groups(cgroup, membership, "memory"):
        for limit_name, used_name, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.high", "memory.current", ""),  # beyond it the kernel slows a process down
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            # Without a limit version 2 says "max", and version 1 a number beyond all memory.
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / limit_name).read_text())
                used = int((folder / used_name).read_text())
                kept = used - _file_cache(folder / "memory.stat", prefix)
                free = min(free, max(0, limit - max(0, kept)))
    return free


def _groups(cgroup: Path, membership: Path, controller: str) -> list[Path]:
    """The folders of this process's control groups for a controller, each up to the topmost one.

    Every level may have a limit: a container's is at the top, that of systemd or Slurm below it.
    The groups of both versions are given; where a system has one of them, the others are not there.
    A path that is not there, as a container sees its host's, leaves the levels above it.
    """
    paths = {Path(cgroup): "/", Path(cgroup, controller): "/"}
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                paths |= {cgroup: path, cgroup / "unified": path}
            elif controller in controllers.split(","):
                paths |= {cgroup / controller: path, cgroup / controllers: path}
    folders = []
    for top, path in paths.items():
        inner = [name for name in path.split("/") if name]
        if ".." in inner:  # a group outside of what this process sees
            inner = []
        folders += [top.joinpath(*inner[:depth]) for depth in range(len(inner), -1, -1)]
    return folders


def _file_cache(statistics: Path, prefix: str) -> int:
    """Bytes of file content that the kernel drops when memory runs short; 0 if unknown."""
    try:
        pairs = dict(line.split(maxsplit=1) for line in statistics.read_text().splitlines())
        return sum(int(pairs[f"{prefix}{state}_file"]) for state in ("inactive", "active"))
    except (OSError, ValueError, KeyError):
        return 0


def peak_memory() -> int:
    """The most resident memory of this process since `reset_peak_memory`, bytes."""
    try:
        # A process inherits the peak of getrusage from its parent.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Make `peak_memory` start again, if the kernel can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def pip_install(requirements: str, *options: str) -> str:
    """The command that installs one of this project's requirement files for this very Python.

    A person may have called `./run.sh`, and has no `pip` of that environment then.
    """
    pip, file = Path(sys.prefix) / "bin" / "pip", _CHECKOUT / requirements
    words = [
        _near(pip) if sys.prefix != sys.base_prefix and pip.exists() else "pip",
        *("install", *options, "-r"),
        _near(file) if file.is_file() else requirements,
    ]
    return f"`{' '.join(words)}`"


def sources_digest() -> str:
    """SHA-256 over this package's source files and their names, hexadecimal."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _near(path: Path) -> str:
    """A path as a person here would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextlib.contextmanager
def in_environment(name: str, value: str) -> Iterator[None]:
    """Give a variable of the environment another value in the `with` block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ |= {name: before} if before is not None else {}


def process_age() -> float:
    """Seconds since this process was started."""
    try:
        # The command's name, in parentheses, can hold spaces. The start is the 20th field after it.
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        # For other systems; on Linux psutil knows the boot time in whole seconds only.
        return time.time() - float(psutil.Process().create_time())


def process_times() -> ProcessTimes:
    """Seconds of processor time, until now, of this process and its living descendants."""
    me = psutil.Process()
    found: ProcessTimes = {}
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
    return found


def seconds_between(before: ProcessTimes, after: ProcessTimes) -> float:
    """Processor seconds from one `process_times` to the next; ended processes are left out."""
    return sum(seconds - before.get(key, 0.0) for key, seconds in after.items())

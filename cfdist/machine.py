"""What this machine gives the process, container limits included, and what processes use."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")

# (process id, when it began) -> seconds of processor time. The system uses ids again.
ProcessTimes = dict[tuple[int, float], float]


def available_cores(cgroup: Path = _CGROUP) -> int:
    """CPU cores that this process may use: affinity and cgroup v1 or v2 quota, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return max(1, min(cores, math.floor(quota) if quota is not None else cores))


def _cgroup_quota(cgroup: Path) -> float | None:
    """Cores' worth of CPU time that the container may use; `None`: no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes of memory that are free to use now, cgroup v1 or v2 limit included."""
    import psutil

    free = int(psutil.virtual_memory().available)
    left = _cgroup_memory(cgroup)
    return free if left is None else min(free, left)


def _cgroup_memory(cgroup: Path) -> int | None:
    """Bytes that the container may still take; `None`: no limit."""
    for folder, limit_name, used_name, prefix in (
        (cgroup, "memory.max", "memory.current", ""),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        # Without a limit version 2 says "max", and version 1 a number beyond all memory.
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / limit_name).read_text())
            used = int((folder / used_name).read_text())
            kept = used - _file_cache(folder / "memory.stat", prefix)
            return max(0, limit - max(0, kept))
    return None


def _file_cache(statistics: Path, prefix: str) -> int:
    """Bytes of files that the kernel holds in memory and drops where it runs short; 0: unknown."""
    try:
        pairs = dict(line.split(maxsplit=1) for line in statistics.read_text().splitlines())
        return sum(int(pairs[f"{prefix}{state}_file"]) for state in ("inactive", "active"))
    except (OSError, ValueError, KeyError):
        return 0


def peak_memory() -> int:
    """Most resident memory that this process has had since `reset_peak_memory`, bytes."""
    try:
        # Not getrusage: its peak is inherited from the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Let `peak_memory` begin anew, where the kernel can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def process_age() -> float:
    """Seconds since this process was started."""
    try:
        # The command's name, in parentheses, may hold spaces; the start is the 20th field after it.
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        import psutil

        # Elsewhere; on Linux this rests on a boot time in whole seconds.
        return time.time() - float(psutil.Process().create_time())


def process_times() -> ProcessTimes:
    """Seconds of processor time until now of this process and of each one below it that lives."""
    import psutil

    me = psutil.Process()
    found: ProcessTimes = {}
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
    return found


def seconds_between(before: ProcessTimes, after: ProcessTimes) -> float:
    """Processor seconds between two looks, without processes that ended in between."""
    return sum(seconds - before.get(key, 0.0) for key, seconds in after.items())

"""What this machine gives the process: cores and memory, container limits included."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
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


def available_memory() -> int:
    """Bytes of memory that are free to use now, container limit included."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = (Path("/sys/fs/cgroup") / "memory.max").read_text().strip()
        used = (Path("/sys/fs/cgroup") / "memory.current").read_text().strip()
        return free if limit == "max" else max(0, min(free, int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def peak_memory() -> int:
    """Most resident memory that this process has had so far, bytes."""
    try:
        # Not getrusage: its peak is inherited from the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


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
        return time.time() - psutil.Process().create_time()

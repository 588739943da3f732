"""Processor time of this process and of all that it has started."""

from __future__ import annotations

import contextlib

import psutil

# (process id, when it began): ids are used again.
ProcessTimes = dict[tuple[int, float], float]


def process_times() -> ProcessTimes:
    """Seconds of processor time so far of this process and of each below it that is alive."""
    me = psutil.Process()
    found = {}
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid, process.create_time()] = times.user + times.system
    return found


def seconds_between(before: ProcessTimes, after: ProcessTimes) -> float:
    """Processor seconds between two looks; processes that ended in between are left out."""
    return sum(seconds - before.get(key, 0.0) for key, seconds in after.items())

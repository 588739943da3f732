"""Ends Ray's autoscaler process, which a cluster of one machine has no use for.

The process ignores Ray's request to end, and `ray.shutdown` waits for it before it kills it. Ray
has no option to start a cluster without it. Measured on 2 cores, medians of three sessions in turn:
`ray.shutdown` takes 0.35 s with this module and 1.35 s without it.
"""

from __future__ import annotations

import contextlib
import os

_AUTOSCALER = os.path.join("autoscaler", "_private", "monitor.py")


def end_autoscaler() -> None:
    """Kill the autoscaler among this process's children, if it is there."""
    import psutil

    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(part.endswith(_AUTOSCALER) for part in process.cmdline()):
                process.kill()

"""What metrics, progress and their events cost, as a part of the run that they watch.

    python benchmarks/monitoring.py --root WIDER_val --ground-truth ground_truth

Evaluates on simulated devices that take no time, with Ray's metrics agent there, in this process,
and adds up the processor time of everything that serves to watch the run. Prints it beside the
run's wall time and the pictures done. The AP so far is left out: simulated devices have none, and
the reducer limits it to half a percent of its own time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import PROJECT, arguments_for, data_set

WATCHING = ("add", "add_device", "note_usage", "note_depth")


def timed(owner: type, name: str, spent: list[float]) -> None:
    """Let a method note the processor time of its thread, seconds."""
    method: Callable[..., Any] = getattr(owner, name)

    def call(*given: Any, **named: Any) -> Any:
        begun = time.thread_time()
        try:
            return method(*given, **named)
        finally:
            spent.append(time.thread_time() - begun)

    setattr(owner, name, call)


def main() -> None:
    """Run once and print."""
    parser = arguments_for(__doc__)
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(PROJECT)  # for Ray's processes, which do not import `common`
    from cfdist.command.start import main as run
    from cfdist.monitoring.monitor import Monitor
    from cfdist.report.progress import PictureProgress

    spent: dict[str, list[float]] = {"the screen's thread": []}
    timed(PictureProgress, "_show", spent["the screen's thread"])
    for name in WATCHING:
        timed(Monitor, name, spent.setdefault(name, []))
    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = [
            *data_set(arguments),
            *("backend=simulated", "backend.latency_ms=0", "cluster.dashboard=true", "devices=2"),
            *(f"dataset.repeat={arguments.rounds}", f"output_dir={folder}/out"),
            *arguments.overrides,
        ]
        if code := run():
            sys.exit(code)
        results = json.loads(Path(folder, "out", "results.json").read_text())
    wall, pictures = results["seconds"]["run"], arguments.rounds * results["pictures"]["done"]
    total = sum(map(sum, spent.values()))
    for name, calls in spent.items():
        print(f"{name:20} {len(calls):6} calls {1000 * sum(calls):8.1f} ms")
    print(
        f"{pictures} pictures in {wall:.1f} s: {1e6 * total / pictures:.0f} microseconds a picture"
    )
    print(f"{100 * total / wall:.2f} % of one core's time in the run")


if __name__ == "__main__":
    main()

"""Where the time goes from typing the command to the first batch, and after the last one.

    python benchmarks/start_up.py --root WIDER_val --ground-truth ground_truth

Evaluates 16 pictures on a simulated device that takes no time, once unmeasured and then in each
round with Ray's dashboard off, with it on, and with Python's bytecode files neither read nor
written (`PYTHONDONTWRITEBYTECODE` in a fresh container). Prints the median seconds of each phase.
"""

from __future__ import annotations

import tempfile
from statistics import median

from common import BYTECODE, arguments_for, data_set, product

PHASES = ("imports", "checks", "ray", "devices", "first_chunk")
ENDS = ("run", "evaluation", "shut_down")
# What the product is told, and whether there are bytecode files.
WAYS = {
    "dashboard off": ("cluster.dashboard=false", True),
    "dashboard on": ("cluster.dashboard=true", True),
    "no bytecode files": ("cluster.dashboard=false", False),
}


def phases(overrides: list[str], has_bytecode: bool) -> dict[str, float]:
    """Seconds of each phase of one run, and of the whole command."""
    with tempfile.TemporaryDirectory() as empty:
        none = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": empty}
        results, wall = product(overrides, BYTECODE if has_bytecode else none)
    seconds = {phase: results["start_up_seconds"][phase] for phase in PHASES}
    return seconds | {phase: results["seconds"][phase] for phase in ENDS} | {"whole command": wall}


def main() -> None:
    """Alternate, and print medians."""
    parser = arguments_for(__doc__)
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    overrides = [
        *data_set(arguments),
        "dataset.limit=16",
        "backend=simulated",
        "backend.latency_ms=0",
        *arguments.overrides,
    ]
    product(overrides)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, (dashboard, has_bytecode) in WAYS.items():
            runs[way].append(phases([*overrides, dashboard], has_bytecode))
    print(f"{'seconds, medians':18}" + "".join(f"{way:>19}" for way in WAYS))
    for phase in (*PHASES, *ENDS, "whole command"):
        row = [median(run[phase] for run in runs[way]) for way in WAYS]
        print(f"{phase:18}" + "".join(f"{seconds:19.2f}" for seconds in row))


if __name__ == "__main__":
    main()

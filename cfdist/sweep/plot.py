"""The plot of a sweep: pictures a second over what was swept."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfdist.backends.simulated import PUBLISHED_RATES
from cfdist.files import atomic_write
from cfdist.sweep.runs import (
    BATCH,
    CHIP,
    FIRST_TO_LAST,
    HOST,
    PUBLISHED,
    PURE_INFERENCE,
    STEADY,
    RunSummary,
    have,
    origin_lines,
    swept_keys,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Largest rate over the smallest one. From here on a line far below the published one would look
# flat on a linear axis, so the axis becomes logarithmic.
WIDE_SPREAD = 5

FOOTER_WIDTH = 160  # characters

LABEL = f"published: one Ascend {CHIP}, pure inference"

Line = list[tuple[float | str, float]]


def draw_throughput(runs: Sequence[RunSummary], path: Path) -> bool:
    """Draw the runs' pictures a second, and the published ones if they may stand beside them.

    Args:
        runs: The runs of the sweep.
        path: The PNG to write; it is not written if no run has a rate.

    Returns:
        Whether it was written.
    """
    axis = x_axis(runs)
    lines = lines_of(runs, axis)
    if not lines:
        return False
    # The first time, matplotlib says on stderr that it builds its font cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure  # takes about a second, and few runs draw

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if axis == BATCH and have(runs, PUBLISHED):
        lines[LABEL] = sorted(PUBLISHED_RATES[CHIP].items())
    for label, points in lines.items():
        (line,) = axes.plot(*zip(*points, strict=True), marker="o", label=label)
        if label == LABEL:
            line.set(color="0.45", linestyle="--")
        if isinstance(points[0][0], str):
            line.set_linestyle("none")  # between two names there is nothing
    _label(axes, axis, lines)
    # A picture travels alone: it says itself what was measured where.
    figure.supxlabel(footer(runs), fontsize=6, color="0.35")
    figure.legend(loc="outside upper center", ncols=2)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def footer(runs: Sequence[RunSummary]) -> str:
    """What the runs were measured on, on lines that fit below the plot."""
    lines = [line for line in origin_lines(runs) if not line.startswith("test of ")]
    if left_out := undrawn(runs):
        lines.append(f"not drawn: {left_out}")
    text = "; ".join(lines)
    # `$` would begin a formula.
    return "\n".join(textwrap.wrap(text, FOOTER_WIDTH, break_on_hyphens=False)).replace("$", r"\$")


def x_axis(runs: Sequence[RunSummary]) -> str:
    """What rates are drawn over: the batch size if it is swept, else the first swept key."""
    keys = swept_keys(runs)
    return BATCH if BATCH in keys or not keys else keys[0]


def lines_of(runs: Sequence[RunSummary], axis: str) -> dict[str, Line]:
    """Label -> points (x, pictures a second), one line for each setting of the other swept keys.

    x is a number if all values of the swept key are numbers, else the value as text.
    """
    others = [key for key in swept_keys(runs) if key != axis]
    places: Sequence[float | str]
    places = texts = [str(run.overrides.get(axis, run.figures.get("batch"))) for run in runs]
    with contextlib.suppress(ValueError):
        places = [float(text) for text in texts]
    kinds = _kinds(runs)
    lines: dict[str, Line] = {}
    for run, place in zip(runs, places, strict=True):
        for name in filter(run.figures.__contains__, kinds):
            # The host's rate is as real in a run of simulated devices.
            mark = " (simulated)" if run.simulated and name != HOST else ""
            label = ", ".join([*run.settings(others), kinds[name] + mark])
            lines.setdefault(label, []).append((place, run.figures[name]))
    return {label: points if places is texts else sorted(points) for label, points in lines.items()}


def _kinds(runs: Sequence[RunSummary]) -> dict[str, str]:
    """The rates that are drawn: name of the figure -> for people."""
    # If all runs are too short for a steady rate, one that leaves out the start stands in.
    steady = (STEADY, "steady") if have(runs, STEADY) else (FIRST_TO_LAST, "first to last picture")
    return dict([steady, (PURE_INFERENCE, "pure inference"), (HOST, "host alone")])


def undrawn(runs: Sequence[RunSummary]) -> str:
    """Which runs the picture leaves out, and why; empty if it shows all of them."""
    kinds, keys = _kinds(runs), swept_keys(runs)
    left_out = {
        " ".join(run.settings(keys)) or f"run {run.number}": "too short for a rate"
        if run.figures
        else "failed"
        for run in runs
        if not kinds.keys() & run.figures.keys()
    }
    return ", ".join(f"{name} ({reason})" for name, reason in left_out.items())


def _label(axes: Axes, axis: str, lines: Mapping[str, Line]) -> None:
    """Set titles with units, ticks at the points, and scales that show every line."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

    places = sorted({x for points in lines.values() for x, _ in points}, key=str)
    rates = [rate for points in lines.values() for _, rate in points]
    if not any(isinstance(place, str) for place in places):
        if axis == BATCH:
            axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
    if LABEL in lines and 0 < WIDE_SPREAD * min(rates) < max(rates):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size (pictures)" if axis == BATCH else axis)
    axes.set_ylabel("throughput (pictures/s)")
    axes.grid(alpha=0.3)

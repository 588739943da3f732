"""Plots. Matplotlib is loaded only where one is drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfdist.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cfdist.report.sweep import Row

BATCH = "model.batch"
PUBLISHED_LABEL = "published: one Ascend 310P3, pure inference"
# Largest over smallest rate from which on a line that lies far below the published one would look
# flat, so that the axis becomes logarithmic.
WIDE_SPREAD = 5

Line = list[tuple[float | str, float]]


def throughput(rows: Sequence[Row], published: Mapping[int, float], path: Path) -> bool:
    """Draw the members' pictures a second, and the published ones where batch sizes are swept.

    Args:
        rows: The sweep's members.
        published: Batch size -> images a second; empty for none.
        path: The PNG to write.

    Returns:
        Whether there was anything to draw, and so whether the file was written.
    """
    axis = x_axis(rows)
    lines = lines_of(rows, axis)
    if not lines:
        return False
    # Says on stderr that it builds its font cache, the first time.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if published and axis == BATCH:
        lines[PUBLISHED_LABEL] = sorted(published.items())
    for label, points in lines.items():
        style = {"color": "0.45", "linestyle": "--"} if label == PUBLISHED_LABEL else {}
        if isinstance(points[0][0], str):
            style = {"linestyle": "none"}  # between two names there is nothing
        axes.plot(*zip(*points, strict=True), marker="o", label=label, **style)
    _label(axes, axis, lines)
    figure.legend(loc="outside upper center", ncols=2)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def x_axis(rows: Sequence[Row]) -> str:
    """What the rates are drawn over: the batch size if it is swept, else the first swept key."""
    keys = list(dict.fromkeys(key for row in rows for key in row.swept))
    return BATCH if BATCH in keys or not keys else keys[0]


def lines_of(rows: Sequence[Row], axis: str) -> dict[str, Line]:
    """Label -> points (x, pictures a second), one line for each setting of the other swept keys.

    x is a number where all values of the swept key are numbers, else the value as text.
    """
    values = [row.swept.get(axis, row.batch) for row in rows]
    numeric = all(_is_number(value) for value in values)
    has_steady = any(row.steady is not None for row in rows)
    lines: dict[str, Line] = {}
    for row, value in zip(rows, values, strict=True):
        settings = [f"{key}={text}" for key, text in row.swept.items() if key != axis]
        # Runs too short for a steady rate have at least one without the command's start.
        rates = {
            "steady": row.steady,
            "first to last picture": None if has_steady else row.run_rate,
            "pure inference": row.pure_inference,
            "host alone": row.host,
        }
        for kind, rate in rates.items():
            if rate is not None:
                point = (float(value) if numeric else str(value), rate)
                # The host's own rate is as real on a run of simulated devices.
                is_simulated = row.simulated and kind != "host alone"
                label = ", ".join([*settings, kind]) + (" (simulated)" if is_simulated else "")
                lines.setdefault(label, []).append(point)
    return {label: sorted(points) if numeric else points for label, points in lines.items()}


def _label(axes: Axes, axis: str, lines: Mapping[str, Line]) -> None:
    """Titles with units, ticks where points are, scales that show every line."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

    places = sorted({x for points in lines.values() for x, _ in points}, key=str)
    rates = [rate for points in lines.values() for _, rate in points]
    if not any(isinstance(place, str) for place in places):
        if axis == BATCH:
            axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
    if PUBLISHED_LABEL in lines and 0 < WIDE_SPREAD * min(rates) < max(rates):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size (pictures)" if axis == BATCH else axis)
    axes.set_ylabel("throughput (pictures/s)")
    axes.grid(alpha=0.3)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True

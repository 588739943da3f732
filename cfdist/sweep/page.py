"""The page of a sweep: the curve of what was swept, and a row for each run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from cfdist.backends.simulated import PUBLISHED_RATES
from cfdist.files import REPORT
from cfdist.report.page import charts
from cfdist.report.page.render import render, write_report
from cfdist.report.page.tables import Cell, Table
from cfdist.sweep.plot import LABEL, Line, lines_of, undrawn, x_axis
from cfdist.sweep.runs import (
    BATCH,
    CHIP,
    PUBLISHED,
    PUBLISHED_NOTE,
    RunSummary,
    have,
    origin_lines,
    swept_keys,
)
from cfdist.sweep.tables import (
    COMPARED,
    LISTED,
    SIMULATED_NOTE,
    START_NOTE,
    cells_of,
    failure_lines,
    notes_of,
)


def write_sweep_report(runs: Sequence[RunSummary], folder: Path) -> None:
    """Write `report.html` into the sweep's folder."""
    write_report(folder, lambda: sweep_page(runs, folder))


def sweep_page(runs: Sequence[RunSummary], folder: Path) -> str:
    """The page of a sweep, with links to the pages of its runs that are in its folder."""
    keys = swept_keys(runs)
    notes = [*failure_lines(runs), *notes_of(runs)]
    if any(run.simulated for run in runs):
        notes.insert(0, SIMULATED_NOTE.replace("**", ""))
    return render(
        "sweep.html.j2",
        title=f"cfdist sweep of {' and '.join(keys) if keys else 'one run'}",
        notes=notes,
        charts=_charts(runs),
        undrawn=undrawn(runs),
        compared=_table("Figures by what was swept", runs, COMPARED, None),
        listed=_table("The runs", runs, LISTED, folder),
        published=PUBLISHED_NOTE.replace("`", "") if have(runs, PUBLISHED) else None,
        remark=START_NOTE,
        origin=origin_lines(runs),
    )


def _table(caption: str, runs: Sequence[RunSummary], kind: int, folder: Path | None) -> Table:
    """One of the summary's tables; with a folder, each row's name leads to its run's page."""
    columns, rows = cells_of(runs, kind)
    table = []
    for run, cells in zip(runs, rows, strict=True):
        row = [Cell(cell, _sort_value(cell)) for cell in cells]
        if folder and run.folder and (run.folder / REPORT).is_file():
            with contextlib.suppress(ValueError):  # not below the sweep's folder
                inside = run.folder.absolute().relative_to(folder.absolute())
                link = quote(f"{inside.as_posix()}/{REPORT}", errors="surrogateescape")
                row[0] = Cell(row[0].text, row[0].sort, link)
        table.append(row)
    return Table(caption, [*columns], table)


def _sort_value(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _charts(runs: Sequence[RunSummary]) -> list[Markup]:
    """Pictures a second over what was swept: lines over numbers, bars over names."""
    axis = x_axis(runs)
    lines: dict[str, Line] = lines_of(runs, axis)
    if not lines:
        return []
    if axis == BATCH and have(runs, PUBLISHED):
        lines[LABEL] = [*sorted(PUBLISHED_RATES[CHIP].items())]
    highest = charts.ticks_to(max(rate for line in lines.values() for _, rate in line))
    rates = charts.Axis("pictures/s", highest)
    title = "batch size (pictures)" if axis == BATCH else axis
    places = {x for line in lines.values() for x, _ in line}
    if any(isinstance(place, str) for place in places):
        return [
            charts.bar_chart(name, {str(x): rate for x, rate in line}, title, rates)
            for name, line in lines.items()
        ]
    numbers = sorted(float(place) for place in places)
    across = charts.Axis(title, numbers, is_log=axis == BATCH)
    points = {name: [(float(x), rate) for x, rate in line] for name, line in lines.items()}
    name = f"Pictures a second over {title}"
    return [charts.line_chart(name, points, across, rates, has_dots=True)]

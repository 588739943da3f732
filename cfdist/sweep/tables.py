"""The summary of a sweep: CSV, Markdown page and screen share one list of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cfdist.files import SWEEP_CSV, SWEEP_MARKDOWN, SWEEP_PLOT, write_text
from cfdist.report.screen import console
from cfdist.sweep import plot
from cfdist.sweep.published import NOTE, RATE, published_table
from cfdist.sweep.runs import (
    BATCH,
    END_TO_END,
    HOST,
    PURE_INFERENCE,
    STEADY,
    RunSummary,
    have,
    swept_keys,
)
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS

SIMULATED_NOTE = (
    "**Simulated**: no model ran in the runs that say so; a device only waited as long as a chip "
    "would. Their speed says what this host can feed, and they have no AP."
)
START_NOTE = (
    "Seconds and end-to-end rates include a run's start; the first run's is the longest, since "
    "the later runs use what it has started."
)


@dataclass(frozen=True)
class Column:
    """A column, and its title in each table; a table without a title for it leaves it out.

    Attributes:
        value: What it says of a run, as `sweep.csv` has it; `None` for nothing.
        csv: Its name in `sweep.csv`.
        compared: Its title in the first table of `sweep.md`, which has the published table's shape.
        listed: Its title in the second table of `sweep.md`, which lists the runs.
        screen: Its title on the screen.
        decimals: Those of a figure as a person reads it; `None` for a text.
        scale: What a figure is multiplied by for a person: 100 for percent.
        is_optional: People see it only if a run has a value.
    """

    value: Callable[[RunSummary], str | float | None]
    csv: str = ""
    compared: str = ""
    listed: str = ""
    screen: str = ""
    decimals: int | None = None
    scale: float = 1
    is_optional: bool = False

    def text(self, run: RunSummary) -> str:
        """The value as a person reads it."""
        value = self.value(run)
        if value is None:
            return "-"
        if self.decimals is None or isinstance(value, str):
            return str(value)
        return f"{self.scale * value:.{self.decimals}f}"


def _figure(
    name: str, compared: str = "", listed: str = "", screen: str = "", **options: Any
) -> Column:
    options = {"decimals": 1} | options
    return Column(lambda run: run.figures.get(name), name, compared, listed, screen, **options)


def _compared_rate(name: str, title: str, **options: Any) -> Column:
    """A rate beside published ones: that of simulated devices says what it is."""

    def value(run: RunSummary) -> str | None:
        mark = " (simulated)" if run.simulated else ""
        return f"{run.figures[name]:.1f}{mark}" if name in run.figures else None

    return Column(value, compared=title, **options)


def _swept(key: str, title: str) -> Column:
    compared = "batch" if key == BATCH else key
    return Column(lambda run: run.overrides.get(key), key, compared, key, title)


_AP: dict[str, Any] = {"decimals": 2, "scale": 100}
# Each: the value or the figure's name, which is that in sweep.csv; then the other tables' titles.
# fmt: off
_COLUMNS = (
    Column(lambda run: "failed" if run.exit_code else "done", "state"),
    Column(lambda run: run.state, listed="state", screen="state"),
    Column(lambda run: run.exit_code, "exit_code"),
    Column(lambda run: run.reason, "reason"),
    Column(lambda run: str(run.simulated).lower(), "simulated"),
    Column(lambda run: run.backend, "resolved_backend", listed="backend"),
    _figure("device_count", "", "devices", decimals=0),
    _figure("batch", "batch", decimals=0),
    Column(lambda run: run.protocol, "protocol"),
    *(_figure(f"ap_{name}", name, "", name, **_AP) for name in DIFFICULTIES),
    _figure(STEADY, "", "pictures/s, steady", "steady"),
    _compared_rate(STEADY, "pictures/s, steady"),
    _figure(END_TO_END, "", "pictures/s, end to end", "end to\nend"),
    _figure(HOST, "pictures/s, host alone", "", "host\nalone", is_optional=True),
    _figure(PURE_INFERENCE, "", "", "pure\ninf.", is_optional=True),
    _compared_rate(PURE_INFERENCE, "pictures/s, pure inference", is_optional=True),
    _figure("median_batch_ms", "", "ms a batch (median)", "ms a\nbatch"),
    _figure("busy_share", "", "busy %", "busy\n%", decimals=0, scale=100),
    _figure("total_seconds", "", "seconds", "s"),
    *(_figure(f"published_ap_{name}", f"published {name}", is_optional=True, **_AP)
      for name in DIFFICULTIES),
    _figure(RATE, "published images/s", is_optional=True),
)
# fmt: on


def columns_of(runs: Sequence[RunSummary]) -> list[Column]:
    """All columns of a sweep's tables: which run, what sets it apart, then the figures."""
    keys = swept_keys(runs)
    last_parts = [key.rpartition(".")[2] for key in keys]
    # On the screen a key is named by its last part, unless another key has the same.
    swept = [
        _swept(key, last if last_parts.count(last) == 1 else key)
        for key, last in zip(keys, last_parts, strict=True)
    ]
    number = Column(lambda run: run.number, "run", listed="run", screen="" if keys else "run")
    return [number, *swept, *_COLUMNS]


def _shown(runs: Sequence[RunSummary], title_of: Callable[[Column], str]) -> dict[str, Column]:
    """Title -> column of a table for people; a swept key replaces the column of its title."""
    columns: dict[str, Column] = {}
    for column in columns_of(runs):
        has_value = not column.is_optional or any(column.value(run) is not None for run in runs)
        if title_of(column) and has_value:
            columns.setdefault(title_of(column), column)
    return columns


def write_summary(runs: Sequence[RunSummary], folder: Path) -> None:
    """Show the summary and write `sweep.csv`, `sweep.md` and `throughput.png`."""
    rates = published_table().rates if have(runs, RATE) else {}
    is_plotted = plot.draw_throughput(runs, rates, folder / SWEEP_PLOT)
    page = markdown(runs, SWEEP_PLOT if is_plotted else None)
    write_text(folder / SWEEP_MARKDOWN, page)
    write_text(folder / SWEEP_CSV, csv_text(runs))
    print_runs(runs)
    console.print(f"sweep: {folder / SWEEP_MARKDOWN}", markup=False)


def csv_text(runs: Sequence[RunSummary]) -> str:
    """One line a run, after the names of the columns; an empty cell means "no figure"."""
    columns = [column for column in columns_of(runs) if column.csv]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.csv for column in columns)
    writer.writerows([column.value(run) for column in columns] for run in runs)
    return text.getvalue()


def markdown(runs: Sequence[RunSummary], plot: str | None) -> str:
    """The summary as a page: the published table's shape first, then every run.

    Args:
        runs: The runs of the sweep.
        plot: Name of the plot's file, beside the page; `None` for none.
    """
    keys, protocols = swept_keys(runs), _protocol_titles(runs)
    notes = [*dict.fromkeys(note for run in runs for note in run.notes), *_missing_rates(runs)]
    parts = [
        f"# Sweep of {' and '.join(keys) if keys else 'one run'}",
        SIMULATED_NOTE if any(run.simulated for run in runs) else "",
        f"APs in percent, by the protocol {protocols}." if protocols else "",
        _markdown_table(_shown(runs, lambda column: column.compared), runs),
        _published_note(runs),
        f"![pictures a second]({plot})" if plot else "",
        "## The runs",
        _markdown_table(_shown(runs, lambda column: column.listed), runs),
        START_NOTE if sum(END_TO_END in run.figures for run in runs) > 1 else "",
        "\n".join(f"- {failure}" for failure in _failures(runs)),
        *(f"Note: {note}." for note in notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(columns: dict[str, Column], runs: Sequence[RunSummary]) -> str:
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[one.text(run).replace("|", "\\|") for one in columns.values()] for run in runs]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def print_runs(runs: Sequence[RunSummary]) -> None:
    """The summary's table, why runs failed, and notes; with one swept key in 80 characters."""
    table = Table(title=_screen_title(runs), title_justify="left", box=SIMPLE_HEAD)
    table.padding, table.pad_edge, table.show_edge = (0, 1, 0, 0), False, False
    columns = _shown(runs, lambda column: column.screen)
    for title, column in columns.items():
        table.add_column(title, justify="left" if column.decimals is None else "right")
    for run in runs:
        table.add_row(*(Text(column.text(run)) for column in columns.values()))
    # As wide as it is: squeezed into a narrow terminal, figures would be cut.
    table.width = console.measure(table, options=console.options.update(width=1000)).maximum
    console.print(table)
    for line in [*_failures(runs), *(f"note: {note}" for note in _missing_rates(runs))]:
        console.print(line, markup=False)


def _screen_title(runs: Sequence[RunSummary]) -> str:
    count = f"sweep of {len(runs)} run{'s' if len(runs) > 1 else ''}"
    kinds = {run.simulated for run in runs if run.backend is not None}
    simulated = ", some SIMULATED" if len(kinds) == 2 else ", SIMULATED" if True in kinds else ""
    protocols = _protocol_titles(runs)
    ap = f"; AP in %, {protocols}" if protocols else ""
    return f"{count}{simulated}; rates in pictures/s{ap}"


def _protocols(runs: Sequence[RunSummary]) -> list[str]:
    """The protocols that the APs were computed by."""
    with_ap = [run for run in runs if any(name.startswith("ap_") for name in run.figures)]
    return sorted({run.protocol for run in with_ap if run.protocol})


def _protocol_titles(runs: Sequence[RunSummary]) -> str:
    return " and ".join(PROTOCOLS[protocol].title for protocol in _protocols(runs))


def _published_note(runs: Sequence[RunSummary]) -> str:
    """What the published figures are, and whether the APs can be compared with them."""
    protocol = published_table().protocol
    if not have(runs, RATE) or set(_protocols(runs)) <= {protocol}:
        return NOTE if have(runs, RATE) else ""
    return (
        f"{NOTE} Their APs cannot be compared with those of another protocol than "
        f"{PROTOCOLS[protocol].title} (`eval={protocol}`)."
    )


def _failures(runs: Sequence[RunSummary]) -> list[str]:
    keys = swept_keys(runs)
    lines = []
    for run in runs:
        settings = " ".join(f"{key}={run.overrides[key]}" for key in keys if key in run.overrides)
        title = f"{run.number} ({settings})" if settings else str(run.number)
        if run.reason:
            lines.append(f"failed: run {title}: {run.reason}")
    return lines


def _missing_rates(runs: Sequence[RunSummary]) -> list[str]:
    if any(END_TO_END in run.figures and STEADY not in run.figures for run in runs):
        return ["runs without a steady rate had too few pictures to leave their start-up out"]
    return []

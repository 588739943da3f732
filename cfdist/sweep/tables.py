"""The summary of a sweep: CSV, Markdown page and screen share one list of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfdist.errors import counted
from cfdist.files import SWEEP_CSV, SWEEP_MARKDOWN, SWEEP_PLOT, write_text
from cfdist.report.accuracy import published_ap
from cfdist.report.screen import TOO_SHORT, console, print_compact, titled_table
from cfdist.storage import shown
from cfdist.sweep import plot
from cfdist.sweep.runs import (
    BATCH,
    DEVICE_TIME,
    END_TO_END,
    HOST,
    LATENCIES,
    ORIGIN,
    PUBLISHED,
    PUBLISHED_NOTE,
    PURE_INFERENCE,
    STEADY,
    RunSummary,
    have,
    origin_lines,
    swept_keys,
    test_lines,
    values_of,
)
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS, title_of

SIMULATED_NOTE = (
    "**Simulated**: no model ran in the runs that say so; a device only waited as long as a chip "
    "would. Their speed says what this host can feed, and they have no AP."
)
START_NOTE = (
    "Seconds and end-to-end rates include a run's start; the first run's is the longest, since "
    "the later runs use what it has started."
)


# The tables for people: the first one of `sweep.md`, which has the published table's shape; the
# second one of it, which lists the runs; and the one on the screen.
COMPARED, LISTED, SCREEN = range(3)
# Name of a column in `sweep.csv` -> its title in each of them, empty if the table leaves it out.
_TITLES = {
    "state": ("", "state", "state"),
    "exit_code": ("", "", ""),
    "reason": ("", "", ""),
    "simulated": ("", "", ""),
    "resolved_backend": ("", "backend", ""),
    "device_count": ("", "devices", ""),
    "batch": ("batch", "", ""),
    "protocol": ("", "", ""),
    **{f"ap_{name}": (name, "", name) for name in DIFFICULTIES},
    STEADY: ("pictures/s, steady", "pictures/s, steady", "steady"),
    END_TO_END: ("", "pictures/s, end to end", "end to\nend"),
    HOST: ("pictures/s, host alone", "", "host\nalone"),
    PURE_INFERENCE: ("pictures/s, pure inference", "", "pure\ninf."),
    DEVICE_TIME: ("pictures/s by device time", "", "device\ntime"),
    "median_batch_ms": ("", "ms a batch (median)", "ms a\nbatch"),
    **{f"{name}_ms": ("", f"{name} ms", f"{name}\nms") for name in LATENCIES},
    "busy_share": ("", "busy %", "busy\n%"),
    "total_seconds": ("", "seconds", "s"),
    **dict.fromkeys(ORIGIN, ("", "", "")),
    **{f"published_ap_{name}": (f"published {name}", "", "") for name in DIFFICULTIES},
    PUBLISHED: ("published images/s", "", ""),
}
# People see these columns only if a run has a value.
_OPTIONAL = {
    HOST,
    PURE_INFERENCE,
    DEVICE_TIME,
    PUBLISHED,
    *(f"{name}_ms" for name in LATENCIES),
    *(f"published_ap_{name}" for name in DIFFICULTIES),
}


def _titles(runs: Sequence[RunSummary]) -> dict[str, tuple[str, str, str]]:
    """All columns: which run, what sets it apart, then those of every sweep."""
    keys = swept_keys(runs)
    last_parts = [key.rpartition(".")[2] for key in keys]
    swept = {
        # On the screen a key is named by its last part, unless another key has the same.
        key: ("batch" if key == BATCH else key, key, last if last_parts.count(last) == 1 else key)
        for key, last in zip(keys, last_parts, strict=True)
    }
    return {"run": ("", "run", "" if keys else "run"), **swept, **_TITLES}


def _values(run: RunSummary) -> dict[str, Any]:
    """Name of a column -> what it says of a run; more names than there are columns."""
    named = {"run": run.number, "state": run.state, "simulated": str(run.simulated).lower()}
    return run.origin | run.overrides | run.figures | vars(run) | named


def _cell(run: RunSummary, name: str, table: int) -> str:
    """A value as a person reads it."""
    value = _values(run).get(name)
    if value is None and name == STEADY and END_TO_END in run.figures:
        return TOO_SHORT
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    if name == "busy_share":
        return f"{100 * value:.0f}"
    if "ap_" in name:
        return f"{100 * value:.2f}"
    # Beside published rates, those of simulated devices say what they are.
    is_of_devices = name in (STEADY, PURE_INFERENCE, DEVICE_TIME)
    is_marked = table == COMPARED and run.simulated and is_of_devices
    return f"{value:.1f}{' (simulated)' if is_marked else ''}"


def cells_of(runs: Sequence[RunSummary], table: int) -> tuple[dict[str, str], list[list[str]]]:
    """A table for people: title -> name of its columns, and the cells of each run."""
    columns: dict[str, str] = {}
    for name, titles in _titles(runs).items():
        if titles[table] and (name not in _OPTIONAL or have(runs, name)):
            # A swept key replaces the column of its title.
            columns.setdefault(titles[table], name)
    return columns, [[_cell(run, name, table) for name in columns.values()] for run in runs]


def write_summary(runs: Sequence[RunSummary], folder: Path) -> None:
    """Show the summary and write `sweep.csv`, `sweep.md` and `throughput.png`."""
    is_plotted = plot.draw_throughput(runs, folder / SWEEP_PLOT)
    page = markdown(runs, SWEEP_PLOT if is_plotted else None)
    write_text(folder / SWEEP_MARKDOWN, page)
    write_text(folder / SWEEP_CSV, csv_text(runs))
    print_runs(runs)
    console.print(f"sweep: {shown(folder / SWEEP_MARKDOWN)}")


def csv_text(runs: Sequence[RunSummary]) -> str:
    """One line a run, after the names of the columns; an empty cell means "no figure"."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _titles(runs), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        _values(run) | {"state": "failed" if run.exit_code else "done"} for run in runs
    )
    return text.getvalue()


def markdown(runs: Sequence[RunSummary], plot: str | None) -> str:
    """The summary as a page: the published table's shape first, then every run.

    Args:
        runs: The runs of the sweep.
        plot: Name of the plot's file, beside the page; `None` for none.
    """
    keys, protocols = swept_keys(runs), _protocol_titles(runs)
    published = PUBLISHED_NOTE if have(runs, PUBLISHED) else ""
    guide = published_ap().protocol
    if published and protocols not in ("", PROTOCOLS[guide].title):
        published += (
            " Their APs cannot be compared with those of another protocol than "
            f"{PROTOCOLS[guide].title} (`eval={guide}`)."
        )
    parts = [
        f"# Sweep of {' and '.join(keys) if keys else 'one run'}",
        SIMULATED_NOTE if any(run.simulated for run in runs) else "",
        "\n".join(f"- {line}" for line in origin_lines(runs)),
        f"APs in percent, by the protocol {protocols}." if protocols else "",
        _markdown_table(runs, COMPARED),
        published,
        f"![pictures a second]({plot})" if plot else "",
        "## The runs",
        _markdown_table(runs, LISTED),
        START_NOTE if sum(END_TO_END in run.figures for run in runs) > 1 else "",
        "\n".join(f"- {failure}" for failure in failure_lines(runs)),
        *(f"Note: {note}." for note in notes_of(runs)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def notes_of(runs: Sequence[RunSummary]) -> list[str]:
    """What a reader of the summary should know, a sentence each without a full stop."""
    of_runs = dict.fromkeys(note for run in runs for note in run.notes)
    return [*of_runs, *_unlike(runs), *_missing_rates(runs)]


def _markdown_table(runs: Sequence[RunSummary], table: int) -> str:
    columns, rows = cells_of(runs, table)
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell.replace("|", "\\|") for cell in cells] for cells in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def print_runs(runs: Sequence[RunSummary]) -> None:
    """The summary's table, why runs failed, and notes; with one swept key in 80 characters."""
    columns, rows = cells_of(runs, SCREEN)
    titles = list(columns)
    texts = titles.index("state") + 1  # columns; figures follow
    table = titled_table(_screen_title(runs), titles[:texts], titles[texts:])
    for cells in rows:
        table.add_row(*cells)
    print_compact(table)
    for line in [
        *test_lines(runs),
        *failure_lines(runs),
        *(f"note: {note}" for note in (*_unlike(runs), *_missing_rates(runs))),
    ]:
        console.print(line)


def _screen_title(runs: Sequence[RunSummary]) -> str:
    count = f"sweep of {counted(len(runs), 'run')}"
    kinds = {run.simulated for run in runs if run.resolved_backend is not None}
    simulated = ", some SIMULATED" if len(kinds) == 2 else ", SIMULATED" if True in kinds else ""
    protocols = _protocol_titles(runs)
    ap = f"; AP in %, {protocols}" if protocols else ""
    return f"{count}{simulated}; rates in pictures/s{ap}"


def _protocol_titles(runs: Sequence[RunSummary]) -> str:
    """The protocols that the APs were computed by."""
    protocols = {run.protocol for run in runs if "ap_easy" in run.figures and run.protocol}
    return " and ".join(map(title_of, sorted(protocols)))


def _unlike(runs: Sequence[RunSummary]) -> list[str]:
    """What nobody swept and yet differs between runs, so that their figures cannot be compared."""
    sections = {key.partition(".")[0] for key in swept_keys(runs)}
    meant = {"date", "test"} | ({"data_set", "pictures"} if "dataset" in sections else set())
    names = [
        title
        for name, title in ORIGIN.items()
        if name not in meant and len(values_of(runs, name)) > 1
    ]
    if not names:
        return []
    return [f"the runs differ in {' and '.join(names)} as well; compare them with care"]


def failure_lines(runs: Sequence[RunSummary]) -> list[str]:
    """Why runs failed, a line each."""
    settings = [" ".join(run.settings(swept_keys(runs))) for run in runs]
    return [
        f"failed: run {run.number}{f' ({text})' if text else ''}: {run.reason}"
        for run, text in zip(runs, settings, strict=True)
        if run.reason
    ]


def _missing_rates(runs: Sequence[RunSummary]) -> list[str]:
    if any(END_TO_END in run.figures and STEADY not in run.figures for run in runs):
        return ["runs without a steady rate had too few pictures to leave their start-up out"]
    return []

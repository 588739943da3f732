"""The end of a sweep: its runs' figures on the screen, as CSV, as Markdown and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cfdist.backends.simulated import PUBLISHED_INPUT, PUBLISHED_RATES
from cfdist.command.exit_codes import ExitCode
from cfdist.config import CONFIG_FOLDER
from cfdist.files import write_text
from cfdist.report import plots
from cfdist.report.screen import PROTOCOL_TITLES, console
from cfdist.run_folder import SWEEP_CSV, SWEEP_MARKDOWN, SWEEP_PLOT
from cfdist.widerface.ground_truth import DIFFICULTIES

PUBLISHED_CHIP = "310P3"
PUBLISHED_MODEL = "centerface_pytorch"
PUBLISHED_NOTE = (
    "The published figures are those of the Ascend guide for CenterFace: one Ascend 310P3, CANN "
    "6.0.RC1, 800x800, pure inference (no picture is read or decoded in that time), APs by the "
    "guide's protocol (IoU 0.4) over the whole validation set, and other weights than "
    "`model=centerface` has: those of the PyTorch training code. They are a yardstick; no run of "
    "this sweep gave them."
)
SIMULATED_NOTE = (
    "**Simulated**: no model ran in the runs that say so; a device only waited as long as a chip "
    "would. Their speed says what this host can feed, and they have no AP."
)
START_NOTE = (
    "Seconds and end-to-end rates hold a run's start; the first run's is the longest, since what "
    "it starts stays for the others."
)


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        number: The name of its folder in the sweep's.
        overrides: Key -> value, as set for it.
        exit_code: What it ended with.
        reason: Why it has no results, one line; `None` where it has.
        results: The content of its `results.json`, if it has one.
    """

    number: int
    overrides: dict[str, str]
    exit_code: int
    reason: str | None
    results: dict[str, Any] | None


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        rates: Batch size -> images a second.
        ap: Difficulty -> AP, a fraction, the same at every batch size.
        protocol: Which protocol's AP that is.
    """

    rates: dict[int, float]
    ap: dict[str, float]
    protocol: str


@dataclass(frozen=True)
class Row:
    """One member in the summary; what it has no figure for is `None`.

    Attributes:
        member: Its number.
        swept: What sets it apart from the others: key -> value.
        exit_code: What it ended with.
        reason: Why that is not 0, one line.
        simulated: No real model ran.
        backend: The resolved backend.
        devices: Device actors.
        batch: Pictures a batch.
        input: Rows and columns of the network's input.
        protocol: The chosen protocol, which `ap` is of.
        ap: Difficulty -> AP, a fraction; empty where there is none.
        steady: Pictures a second without start-up.
        end_to_end: Pictures a second by the whole run's time.
        run_rate: Pictures a second from the first picture handed out to the last one finished.
        pure_inference: Pictures a second of the devices' inference alone.
        host: Pictures a second that the host reads at best, alone.
        batch_ms: Median milliseconds a batch, the median of the devices'.
        busy_share: Share of the run that a device spent inferring, the devices' mean.
        seconds: The whole run's.
        notes: What a reader of its results should know.
    """

    member: int
    swept: dict[str, str]
    exit_code: int
    reason: str | None
    simulated: bool = False
    backend: str | None = None
    devices: int | None = None
    batch: int | None = None
    input: tuple[int, int] | None = None
    protocol: str | None = None
    ap: dict[str, float] = field(default_factory=dict)
    steady: float | None = None
    end_to_end: float | None = None
    run_rate: float | None = None
    pure_inference: float | None = None
    host: float | None = None
    batch_ms: float | None = None
    busy_share: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """In a word how it ended."""
        if self.exit_code:
            return f"failed ({self.exit_code})"
        return "simulated" if self.simulated else "done"

    @property
    def title(self) -> str:
        """Its number and what sets it apart."""
        settings = " ".join(f"{key}={value}" for key, value in self.swept.items())
        return f"{self.member} ({settings})" if settings else str(self.member)


def summarise(members: Sequence[Member], folder: Path) -> None:
    """Show the summary and write `sweep.csv`, `sweep.md` and `throughput.png`."""
    rows = rows_of(members)
    published = published_table()
    rates = published.rates if _has_published(rows, published) else {}
    plotted = plots.throughput(rows, rates, folder / SWEEP_PLOT)
    write_text(folder / SWEEP_MARKDOWN, markdown(rows, published, SWEEP_PLOT if plotted else None))
    write_text(folder / SWEEP_CSV, csv_text(rows, published))
    print_rows(rows)
    console.print(f"sweep: {folder / SWEEP_MARKDOWN}", markup=False)


def published_table() -> Published:
    """The Ascend guide's table for CenterFace."""
    model = OmegaConf.load(CONFIG_FOLDER / "model" / f"{PUBLISHED_MODEL}.yaml")
    ap = {name: model.expected[name] for name in DIFFICULTIES}
    return Published(PUBLISHED_RATES[PUBLISHED_CHIP], ap, model.expected.protocol)


def verdict(results: dict[str, Any]) -> tuple[int, str | None]:
    """The exit code of a run with these results and, where it is not 0, why."""
    expected, comparison = results["expected"], results.get("comparison")
    if results["config"]["eval"]["gate"] and expected and not expected["met"]:
        return ExitCode.GATE_MISSED, "the AP misses model.expected"
    if comparison and not comparison["within_tolerance"]:
        return ExitCode.PAST_TOLERANCE, "the models are too far apart"
    if results["failures"]:
        first = results["failures"][0]
        return ExitCode.PICTURES_FAILED, (
            f"{len(results['failures'])} of {results['pictures']['total']} pictures failed; the "
            f"first, {first['picture']}: {first['reason']}"
        )
    return 0, None


def rows_of(members: Sequence[Member]) -> list[Row]:
    """The members' figures, side by side."""
    keys = swept_keys([member.overrides for member in members])
    return [_row(member, keys) for member in members]


def swept_keys(overrides: Sequence[dict[str, str]]) -> list[str]:
    """The keys whose values differ, in the command line's order."""
    keys = dict.fromkeys(key for one in overrides for key in one)
    return [key for key in keys if len({one.get(key) for one in overrides}) > 1]


def _row(member: Member, keys: Sequence[str]) -> Row:
    swept = {key: member.overrides[key] for key in keys if key in member.overrides}
    results = member.results
    if results is None:
        return Row(member.number, swept, member.exit_code, member.reason)
    config, rates = results["config"], results["throughput"] or {}
    measured = results["devices"] or _inference_devices(results)
    busy = [device["busy_share"] for device in results["devices"]]
    protocol = config["eval"]["protocol"]
    medians = [device["batch_ms"]["median"] for device in measured if device["batch_ms"]]
    return Row(
        member.number,
        swept,
        member.exit_code,
        verdict(results)[1],
        simulated=results["simulated"],
        backend=results["backend"],
        devices=len(measured) or None,
        batch=results["batch"],
        input=(config["model"]["height"], config["model"]["width"]),
        protocol=protocol,
        ap=results["ap"].get(protocol, {}),
        steady=rates.get("steady"),
        end_to_end=rates.get("end_to_end"),
        run_rate=_run_rate(results),
        pure_inference=rates.get("pure_inference"),
        host=_host_rate(results),
        batch_ms=float(np.median(medians)) if medians else None,
        busy_share=float(np.mean(busy)) if busy else None,
        seconds=results["seconds"]["total"],
        notes=tuple(results["notes"]),
    )


def _inference_devices(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The devices of `job=benchmark`'s inference part; none where it was not run."""
    inference = results.get("benchmark", {}).get("inference")
    return inference["devices"] if inference else []


def _run_rate(results: dict[str, Any]) -> float | None:
    seconds = results["seconds"].get("run")
    pictures = sum(device["pictures"] for device in results["devices"])
    return pictures / seconds if seconds and pictures else None


def _host_rate(results: dict[str, Any]) -> float | None:
    rates = results.get("benchmark", {}).get("host") or []
    return max((rate["pictures_per_second"] for rate in rates), default=None)


def published_rate(row: Row, published: Published) -> float | None:
    """The published images a second for a row's batch size and input, if there are any."""
    return published.rates.get(row.batch) if row.input == PUBLISHED_INPUT else None


def _has_published(rows: Sequence[Row], published: Published) -> bool:
    return any(published_rate(row, published) is not None for row in rows)


def _has_pure_inference(rows: Sequence[Row]) -> bool:
    return any(row.pure_inference is not None for row in rows)


def _has_host(rows: Sequence[Row]) -> bool:
    return any(row.host is not None for row in rows)


def csv_text(rows: Sequence[Row], published: Published) -> str:
    """One line a member, after the names of the columns; an empty cell is "no figure"."""
    records = [_record(row, published) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(row: Row, published: Published) -> dict[str, Any]:
    rate = published_rate(row, published)
    published_ap = {} if rate is None else published.ap
    return {
        "member": row.member,
        **row.swept,
        "state": "failed" if row.exit_code else "done",
        "exit_code": row.exit_code,
        "reason": row.reason,
        "simulated": str(row.simulated).lower(),
        "resolved_backend": row.backend,
        "device_count": row.devices,
        "batch": row.batch,
        "protocol": row.protocol,
        **{f"ap_{name}": row.ap.get(name) for name in DIFFICULTIES},
        "steady_pictures_per_s": row.steady,
        "end_to_end_pictures_per_s": row.end_to_end,
        "pure_inference_pictures_per_s": row.pure_inference,
        "host_pictures_per_s": row.host,
        "median_batch_ms": row.batch_ms,
        "busy_share": row.busy_share,
        "total_seconds": row.seconds,
        **{f"published_ap_{name}": published_ap.get(name) for name in DIFFICULTIES},
        "published_images_per_s": rate,
    }


class Column(NamedTuple):
    """A column of a table: its title, and what it says of a row."""

    title: str
    cell: Callable[[Row], str]


def markdown(rows: Sequence[Row], published: Published, plot: str | None) -> str:
    """The summary as a page: the published table's shape first, then every run.

    Args:
        rows: The members.
        published: What is put beside them.
        plot: Name of the plot's file, beside the page; `None` for none.
    """
    keys, protocols = _swept_keys(rows), _protocols(rows)
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    parts = [
        f"# Sweep of {' and '.join(keys) if keys else 'one run'}",
        SIMULATED_NOTE if any(row.simulated for row in rows) else "",
        f"APs in percent, by the protocol {protocols}." if protocols else "",
        _markdown_table(_comparison_columns(rows, published), rows),
        _published_note(rows, published),
        f"![pictures a second]({plot})" if plot else "",
        "## The runs",
        _markdown_table(_run_columns(rows), rows),
        START_NOTE if sum(row.end_to_end is not None for row in rows) > 1 else "",
        "\n".join(f"- failed: run {row.title}: {row.reason}" for row in rows if row.reason),
        *(f"Note: {note}." for note in [*notes, *_missing_rates(rows)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    lines = [[column.title for column in columns], ["---"] * len(columns)]
    lines += [[column.cell(row).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _comparison_columns(rows: Sequence[Row], published: Published) -> list[Column]:
    """The published table's columns, and the published figures beside them."""

    def rate(row: Row, value: float | None) -> str:
        return _number(value) + (" (simulated)" if row.simulated and value is not None else "")

    columns = [
        *(_swept_column(key) for key in _swept_keys(rows) if key != plots.BATCH),
        Column("batch", lambda row: row.swept.get(plots.BATCH, str(row.batch or "-"))),
        *(_ap_column(name) for name in DIFFICULTIES),
        Column("pictures/s, steady", lambda row: rate(row, row.steady)),
    ]
    if _has_host(rows):
        columns.append(Column("pictures/s, host alone", lambda row: _number(row.host)))
    if _has_pure_inference(rows):
        pure = Column("pictures/s, pure inference", lambda row: rate(row, row.pure_inference))
        columns.append(pure)
    if _has_published(rows, published):
        columns += (_published_ap_column(name, published) for name in DIFFICULTIES)
        images = Column("published images/s", lambda row: _number(published_rate(row, published)))
        columns.append(images)
    return columns


def _run_columns(rows: Sequence[Row]) -> list[Column]:
    keys = _swept_keys(rows)
    about = {
        "backend": Column("backend", lambda row: row.backend or "-"),
        "devices": Column("devices", lambda row: str(row.devices or "-")),
    }
    return [
        Column("run", lambda row: str(row.member)),
        *map(_swept_column, keys),
        Column("state", lambda row: row.state),
        *(column for key, column in about.items() if key not in keys),
        Column("pictures/s, steady", lambda row: _number(row.steady)),
        Column("pictures/s, end to end", lambda row: _number(row.end_to_end)),
        Column("ms a batch (median)", lambda row: _number(row.batch_ms)),
        Column("busy %", lambda row: _percent(row.busy_share, 0)),
        Column("seconds", lambda row: _number(row.seconds)),
    ]


def print_rows(rows: Sequence[Row]) -> None:
    """The summary's table, and why runs failed."""
    columns = _screen_columns(rows)
    table = Table(
        title=_screen_title(rows),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    left = len(_swept_keys(rows) or ["run"]) + 1
    for index, column in enumerate(columns):
        table.add_column(column.title, justify="left" if index < left else "right")
    for row in rows:
        table.add_row(*(Text(column.cell(row)) for column in columns))
    # As wide as it is: squeezed into a narrow terminal, figures would be cut.
    table.width = console.measure(table, options=console.options.update(width=1000)).maximum
    console.print(table)
    for row in rows:
        if row.reason:
            console.print(f"failed: run {row.title}: {row.reason}", markup=False)
    for note in _missing_rates(rows):
        console.print(f"note: {note}", markup=False)


def _screen_columns(rows: Sequence[Row]) -> list[Column]:
    """Few and narrow ones: with one swept key the table fits into 80 characters."""
    keys = _swept_keys(rows)
    which = [Column(_short(key, keys), _swept_column(key).cell) for key in keys]
    pure = Column("pure\ninf.", lambda row: _number(row.pure_inference))
    host = Column("host\nalone", lambda row: _number(row.host))
    return [
        *(which or [Column("run", lambda row: str(row.member))]),
        Column("state", lambda row: row.state),
        *(_ap_column(name) for name in DIFFICULTIES),
        *([host] if _has_host(rows) else []),
        *([pure] if _has_pure_inference(rows) else []),
        Column("steady", lambda row: _number(row.steady)),
        Column("end to\nend", lambda row: _number(row.end_to_end)),
        Column("ms a\nbatch", lambda row: _number(row.batch_ms)),
        Column("busy\n%", lambda row: _percent(row.busy_share, 0)),
        Column("s", lambda row: _number(row.seconds)),
    ]


def _screen_title(rows: Sequence[Row]) -> str:
    count = f"sweep of {len(rows)} run{'s' if len(rows) > 1 else ''}"
    kinds = {row.simulated for row in rows if row.backend is not None}
    simulated = ", some SIMULATED" if len(kinds) == 2 else ", SIMULATED" if True in kinds else ""
    protocols = _protocols(rows)
    ap = f"; AP in %, {protocols}" if protocols else ""
    return f"{count}{simulated}; rates in pictures/s{ap}"


def _swept_column(key: str) -> Column:
    return Column(key, lambda row: row.swept.get(key, "-"))


def _ap_column(name: str) -> Column:
    return Column(name, lambda row: _percent(row.ap.get(name), 2))


def _published_ap_column(name: str, published: Published) -> Column:
    def cell(row: Row) -> str:
        is_known = published_rate(row, published) is not None
        return _percent(published.ap[name] if is_known else None, 2)

    return Column(f"published {name}", cell)


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, where that says which one it is."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _swept_keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.swept))


def _protocols(rows: Sequence[Row]) -> str:
    """Which protocols the APs are of."""
    protocols = sorted({row.protocol for row in rows if row.ap})
    return " and ".join(PROTOCOL_TITLES[protocol] for protocol in protocols)


def _published_note(rows: Sequence[Row], published: Published) -> str:
    """What the published figures are, and whether the APs can be held against them."""
    if not _has_published(rows, published):
        return ""
    if any(row.ap and row.protocol != published.protocol for row in rows):
        title = PROTOCOL_TITLES[published.protocol]
        return (
            f"{PUBLISHED_NOTE} Their APs cannot be compared with those of another protocol than "
            f"{title} (`eval={published.protocol}`)."
        )
    return PUBLISHED_NOTE


def _missing_rates(rows: Sequence[Row]) -> list[str]:
    if any(row.steady is None and row.end_to_end is not None for row in rows):
        return ["runs without a steady rate had too few pictures to leave their start-up out"]
    return []


def _percent(share: float | None, decimals: int) -> str:
    return "-" if share is None else f"{100 * share:.{decimals}f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

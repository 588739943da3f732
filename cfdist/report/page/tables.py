"""Tables of a page: what stands in them, and how they are sorted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfdist.config import flat
from cfdist.config.messages import shown
from cfdist.report.results import START_UP
from cfdist.report.screen import points
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS, title_of

NONE = "-"  # stands for a figure that there is not


@dataclass(frozen=True)
class Cell:
    """A cell; `sort` is the number by which its column is sorted, `link` where it leads."""

    text: str
    sort: float | None = None
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row names the row.

    Attributes:
        caption: What it shows.
        columns: The titles.
        rows: The cells, as many in each row as there are titles.
        is_sortable: Whether another order tells a reader something.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = True

    def is_number(self, column: int) -> bool:
        """Whether a column holds figures; words may stand for some of them ("too short")."""
        cells = [row[column] for row in self.rows]
        return any(cell.sort is not None for cell in cells) or all(
            cell.text == NONE for cell in cells
        )


def number(value: float | None, decimals: int = 1, unit: str = "") -> Cell:
    """A figure; `None` is shown as such."""
    if value is None:
        return Cell(NONE)
    return Cell(f"{round(value, decimals) + 0.0:.{decimals}f}{unit}", value)  # never "-0.00"


def scientific(value: float) -> Cell:
    """A figure of any order of magnitude."""
    return Cell(f"{value:.2e}", value)


def count(value: int | None) -> Cell:
    """A whole number."""
    return number(value, 0)


def percent(value: float | None, decimals: int = 2) -> Cell:
    """A fraction in percent."""
    return number(None if value is None else 100 * value, decimals, " %")


def text(value: Any) -> Cell:
    """Anything, as it is written."""
    return Cell(NONE if value is None else str(value))


def pairs(caption: str, values: Mapping[str, Any], titles: tuple[str, str]) -> Table:
    """Names and their values."""
    rows = [[text(name), text(value)] for name, value in values.items()]
    return Table(caption, titles, rows, is_sortable=False)


def settings(config: Mapping[str, Any]) -> Table:
    """Each key of a configuration with its value, as they are typed: "model.batch", 4."""
    values = {key: shown(one) for key, one in flat(config).items()}
    return pairs("Settings", values, ("key", "value"))


def ap_table(results: Mapping[str, Any], published: Mapping[str, Any] | None) -> Table:
    """The AP by each protocol, and beneath it what it should be and what was published.

    Args:
        results: Content of `results.json`.
        published: "protocol" and a fraction for each difficulty, if they are comparable.
    """
    rows = []
    expected = results["expected"]
    chosen: Mapping[str, float] = next(iter(results["ap"].values()), {})
    for protocol, ap in results["ap"].items():
        cells = [percent(ap[d]) for d in DIFFICULTIES]
        if protocol not in PROTOCOLS:  # quirks: how much they add
            more = [points(ap[d] - chosen[d]) for d in DIFFICULTIES]
            cells = [
                Cell(f"{one.text} {by}", one.sort) for one, by in zip(cells, more, strict=True)
            ]
        rows.append([text(title_of(protocol)), *cells])
        if expected and expected["protocol"] == protocol:
            wanted = [percent(expected["ap"].get(d)) for d in DIFFICULTIES]
            rows.append([text(f"{protocol}, expected"), *wanted])
        if published and published["protocol"] == protocol:
            wanted = [percent(published[d]) for d in DIFFICULTIES]
            rows.append([text(f"{protocol}, published for the Ascend guide"), *wanted])
    pictures = results["pictures"]["done"]
    caption = f"WIDER FACE AP over {pictures} pictures"
    return Table(caption, ("protocol", *DIFFICULTIES), rows, is_sortable=False)


def device_table(results: Mapping[str, Any]) -> Table:
    """Each device, its share of the run and its batch times."""
    figures = ("min", "median", "p90", "p99", "max")
    rows = []
    for device in results["devices"]:
        times = device["batch_ms"] or {}
        chip = device["chip"]
        rows.append(
            [
                text(device["name"] if chip is None else f"{device['name']} (chip {chip})"),
                text(device["host"]),
                text(device["runs_on"]),
                count(device["pictures"]),
                percent(device["busy_share"], 0),
                *(number(times.get(name), 2) for name in figures),
                number((device["device_ms"] or {}).get("median"), 2),
            ]
        )
    titles = [f"ms a batch, {name}" for name in figures]
    columns = ("device", "host", "runs on", "pictures", "busy", *titles, "ms on the device, median")
    return Table("Devices and their batch times", columns, rows)


def time_parts(results: Mapping[str, Any]) -> dict[str, float]:
    """Where the wall time went: part -> seconds; together they are the whole."""
    seconds = results["seconds"]
    start_up = results.get("start_up_seconds") or {}
    names = ("imports", "checks of model and pictures", "start of Ray", "loading of the model")
    parts = {
        title: start_up[name] for name, title in zip(START_UP, names, strict=True) if start_up
    } or {"start-up": seconds.get("start_up") or 0.0}
    for name in ("host", "inference", "run", "evaluation", "shut_down"):
        parts[name.replace("_", "-")] = seconds.get(name) or 0.0
    parts["other"] = max(0.0, (seconds["total"] or 0.0) - sum(parts.values()))
    return {name: value for name, value in parts.items() if value >= 0.0005}


def time_table(parts: Mapping[str, float]) -> Table:
    """The parts of the wall time, and the whole."""
    total = sum(parts.values()) or 1.0
    rows = [
        [text(name), number(value, 2, " s"), percent(value / total, 1)]
        for name, value in parts.items()
    ]
    rows.append([text("all"), number(sum(parts.values()), 2, " s"), percent(1.0, 1)])
    return Table("Where the wall time went", ("part", "time", "share"), rows, is_sortable=False)


def reasons(caption: str, listed: Sequence[Mapping[str, str]], most: int) -> Table | None:
    """Pictures with the reason why they are listed; the first ones of many."""
    if not listed:
        return None
    if len(listed) > most:
        caption += f" (the first {most} of {len(listed)}; results.json has all)"
    rows = [[text(one["picture"]), text(one["reason"])] for one in listed[:most]]
    return Table(caption, ("picture", "reason"), rows)


def event_table(events: Sequence[Mapping[str, Any]], most: int) -> Table | None:
    """What happened to devices, nodes and pictures."""
    if not events:
        return None
    columns = ("time", "what", "device", "host", "text")
    rows = [[text(event[name]) for name in columns] for event in events[:most]]
    more = f" (the first {most} of {len(events)})" if len(events) > most else ""
    return Table(f"Events{more}", columns, rows)

"""The screen of `job=benchmark`: one table of what was measured, and what bounds a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from cfdist.errors import counted
from cfdist.report import screen
from cfdist.report.page.run import OwnParts
from cfdist.report.page.tables import Table, number, percent, text
from cfdist.report.results import Results

# Short, so that the table has room on 80 columns.
_COLUMNS = (
    *("pictures\na second", "batch ms\nmin", "\nmean", "\nmedian", "\np99"),
    *("device\nms", "CPU ms a\npicture", "\nbusy"),
)


def print_benchmark(results: Results) -> None:
    """The table, what bounds a run, and what a reader should know."""
    if results.simulated:
        screen.print_simulated()
    what = "host" if results.backend is None else f"{results.backend}, batch {results.batch}"
    title = f"{'SIMULATED ' if results.simulated else ''}benchmark: {what}"
    table = screen.titled_table(title, [""], _COLUMNS)
    for label, figures in _rows(results):
        if not figures:
            table.add_section()
        table.add_row(label, *_cells(label, figures))
    screen.print_compact(table)
    part = results.extra["benchmark"]
    if rate := (part["inference"] or {}).get("device_time_pictures_per_second"):
        screen.console.print(
            f"by the devices' own time alone {rate:.1f} pictures/s (1000 * batch / "
            "mean(NPU_compute_time), as ais_bench and the published table count)"
        )
    bound = part["bound"]
    if bound:
        reached = results.throughput["steady"] if results.throughput else None
        screen.console.print(bound_sentence(bound, reached, results.simulated))
    screen.print_remarks(results)


def _cells(label: str, figures: list[float | None]) -> list[str]:
    """A row's figures as the screen shows them."""
    if not figures:
        return []
    *cells, busy = figures
    texts = [*map(_number, cells), "" if busy is None else f"{100 * busy:.0f} %"]
    return [screen.TOO_SHORT, *texts[1:]] if label == _STEADY and not texts[0] else texts


def benchmark_parts(results: Results) -> OwnParts:
    """The same for the page."""
    rows, part = [], ""
    for label, figures in _rows(results):
        if not figures:
            part = label
            continue
        *cells, busy = figures
        shown = [number(one, _decimals(one)) for one in cells]
        rows.append([text(f"{part}: {label.strip()}"), *shown, percent(busy, 0)])
    bound = results.extra["benchmark"]["bound"]
    reached = results.throughput["steady"] if results.throughput else None
    said = f": {bound_sentence(bound, reached, results.simulated)}" if bound else ""
    times = (f"ms a batch, {name}" for name in ("min", "mean", "median", "p99"))
    columns = ("part", "pictures/s", *times, "ms on the device", "CPU ms a picture", "busy")
    return OwnParts([Table(f"Each part alone, and all together{said}", columns, rows, False)])


_STEADY = "  steady"
_PERCENTILES = {"min": "min", "mean": "mean", "median": "p50", "p90": "p90", "p99": "p99"}


def print_latency(results: Results) -> None:
    """How long one picture after another took, and what a reader should know."""
    if results.simulated:
        screen.print_simulated()
    part = results.extra["benchmark"]
    title = (
        f"{'SIMULATED ' if results.simulated else ''}single_stream: {results.backend}, "
        f"{part['pictures']} pictures in {part['measured_seconds']:.1f} s, milliseconds"
    )
    table = screen.titled_table(title, [""], _PERCENTILES.values())
    for name, times in results.extra["latency_ms"].items():
        label = "a picture, from its file to its faces" if name == "whole" else f"  {name}"
        cells = [f"{times[one]:.2f}" for one in _PERCENTILES if times] or [screen.TOO_SHORT]
        table.add_row(label, *cells)
    screen.print_compact(table)
    screen.print_remarks(results)


def latency_parts(results: Results) -> OwnParts:
    """The same for the page."""
    rows = [
        [text(name), *(number((times or {}).get(one), 2) for one in _PERCENTILES)]
        for name, times in results.extra["latency_ms"].items()
    ]
    columns = ("one picture after another", *_PERCENTILES.values())
    return OwnParts([Table("Latency, milliseconds", columns, rows, is_sortable=False)])


def _rows(results: Results) -> Iterator[tuple[str, list[float | None]]]:
    """Label and figures of each row; the title of a part is a row without figures."""
    part = results.extra["benchmark"]
    if part["inference"]:
        devices = part["inference"]["devices"]
        yield "inference alone", []
        for device in devices:
            streams = f", {device['streams']} streams" if device["streams"] > 1 else ""
            yield _row(f"  {device['name']}{streams}", device["pictures_per_second"], device)
        if len(devices) > 1:
            yield _row("  all devices", part["inference"]["pictures_per_second"])
    if part["host"]:
        yield "host alone (reading)", []
        for rate in part["host"]:
            label = counted(rate["readers"], "reader")
            yield _row(f"  {label}", rate["pictures_per_second"], rate)
    if part["end_to_end"]:
        whole = part["end_to_end"]
        yield "end to end", []
        for device in results.devices:
            yield _row(f"  {device['name']}", None, device)
        yield _row(_STEADY, whole["steady_pictures_per_second"], whole)
        yield _row("  whole command", whole["end_to_end_pictures_per_second"])


def _row(
    label: str, rate: float | None, entry: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, list[float | None]]:
    """A row; its entry in the results has a device's times and busy share, or processor time."""
    times, own = (entry.get(key) or {} for key in ("batch_ms", "device_ms"))
    figures = [rate, *(times.get(name) for name in ("min", "mean", "median", "p99"))]
    figures += [own.get("median"), entry.get("cpu_ms_per_picture"), entry.get("busy_share")]
    return label, figures


def _number(value: float | None) -> str:
    """Three digits or more, never a power of ten."""
    return "" if value is None else f"{value:.{_decimals(value)}f}"


def _decimals(value: float | None) -> int:
    return 2 if value is None or value < 10 else 1


def bound_sentence(bound: dict[str, Any], reached: float | None, simulated: bool) -> str:
    """What bounds a run, in one sentence.

    Args:
        bound: The results' `bound` section.
        reached: Pictures a second of the end-to-end part; `None` if there is no such rate.
        simulated: No real model ran.
    """
    readers = counted(bound["host_readers"], "reader")
    sentence = (
        f"the {'simulated ' if simulated else ''}devices can take "
        f"{bound['devices_pictures_per_second']:.1f} pictures/s, this host can read "
        f"{bound['host_pictures_per_second']:.1f} ({readers}): the "
        f"{bound['bound_by']} bound{'s' if bound['bound_by'] == 'host' else ''} the run"
    )
    if bound["shared_cores_pictures_per_second"] is not None:
        together = bound["shared_cores_pictures_per_second"]
        sentence += f"; both use the same cores, which leaves about {together:.1f}"
    return sentence if reached is None else f"{sentence}; end to end it was {reached:.1f}"

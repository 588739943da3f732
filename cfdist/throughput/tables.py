"""The screen of `job=benchmark`: one table of what was measured, and what bounds a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich import box
from rich.table import Table

from cfdist.backends.model import BackendModel
from cfdist.distributed.plan import DevicePlan
from cfdist.report import screen
from cfdist.report.results import Results
from cfdist.throughput.bound import Bound, bound_sentence

# Short, so that the table has room on 80 columns.
_COLUMNS = (
    "pictures\na second",
    "batch ms\nmin",
    "\nmean",
    "\nmedian",
    "\np99",
    "device\nms",
    "CPU ms a\npicture",
    "\nbusy",
)

_UNLIMITED = 1000  # columns

Row = tuple[str, ...]


def print_plan(model: BackendModel, plan: DevicePlan, dashboard: str | None) -> None:
    """What is about to be measured, on one line, and where to watch it."""
    if model.is_simulated:
        screen.print_simulated()
    screen.console.print(
        f"{model.spec.name} on {model.backend}, {screen.on_devices(plan)}, "
        f"batch {model.spec.batch}",
        markup=False,
    )
    if model.remark:
        screen.console.print(f"backend=auto: {model.remark}", markup=False)
    screen.print_dashboard(dashboard)


def print_host(pictures: int, readers: Sequence[int]) -> None:
    """Say that the host part begins."""
    counts = ", ".join(map(str, readers))
    screen.console.print(
        f"host: reading {pictures} pictures with {counts} "
        f"reader thread{'' if list(readers) == [1] else 's'}"
    )


def print_loops(loops: int, kind: str) -> None:
    """Say that the inference part begins."""
    screen.console.print(f"inference: {loops} batches of {kind} in each stream of each device")


def print_benchmark(results: Results) -> None:
    """The table, what bounds a run, and what a reader should know."""
    if results.simulated:
        screen.print_simulated()
    screen.console.print(_table(results))
    bound = results.extra["benchmark"]["bound"]
    if bound:
        reached = results.throughput["steady"] if results.throughput else None
        screen.console.print(bound_sentence(Bound(**bound), reached, results.simulated))
    screen.print_remarks(results)


def _table(results: Results) -> Table:
    what = "host" if results.backend is None else f"{results.backend}, batch {results.batch}"
    table = Table(
        title=f"{'SIMULATED ' if results.simulated else ''}benchmark: {what}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    section = results.extra["benchmark"]
    for rows in (_inference_rows(section), _host_rows(section), _end_to_end_rows(results)):
        for row in rows:
            table.add_row(*row)
        table.add_section()
    # On a narrower screen the table would break its numbers; the screen then breaks the lines.
    options = screen.console.options.update(max_width=_UNLIMITED)
    table.width = screen.console.measure(table, options=options).maximum
    return table


def _inference_rows(section: dict[str, Any]) -> Iterator[Row]:
    inference = section["inference"]
    if inference is None:
        return
    yield ("inference alone",)
    for device in inference["devices"]:
        streams = f", {device['streams']} streams" if device["streams"] > 1 else ""
        yield _row(f"  {device['name']}{streams}", device["pictures_per_second"], device)
    if len(inference["devices"]) > 1:
        yield _row("  all devices", inference["pictures_per_second"])


def _host_rows(section: dict[str, Any]) -> Iterator[Row]:
    if not section["host"]:
        return
    yield ("host alone (reading)",)
    for rate in section["host"]:
        label = f"  {rate['readers']} reader{'s' if rate['readers'] > 1 else ''}"
        yield _row(label, rate["pictures_per_second"], cpu_ms=rate["cpu_ms_per_picture"])


def _end_to_end_rows(results: Results) -> Iterator[Row]:
    whole = results.extra["benchmark"]["end_to_end"]
    if whole is None:
        return
    yield ("end to end",)
    for device in results.devices:
        yield _row(f"  {device['name']}", device=device)
    yield _row("  steady", whole["steady_pictures_per_second"], cpu_ms=whole["cpu_ms_per_picture"])
    yield _row("  whole command", whole["end_to_end_pictures_per_second"])


def _row(
    label: str,
    rate: float | None = None,
    device: Mapping[str, Any] = MappingProxyType({}),
    cpu_ms: float | None = None,
) -> Row:
    """A row; a device brings its batch times, its own times and its busy share."""
    times, own, busy = (device.get(key) for key in ("batch_ms", "device_ms", "busy_share"))
    return (
        label,
        _number(rate),
        *(_number(times[name] if times else None) for name in ("min", "mean", "median", "p99")),
        _number(own["median"] if own else None),
        _number(cpu_ms),
        "" if busy is None else f"{100 * busy:.0f} %",
    )


def _number(value: float | None) -> str:
    """Three digits or more, never a power of ten."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"

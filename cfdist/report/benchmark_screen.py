"""The screen of `job=benchmark`: one table of what was measured, and what bounds a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from cfdist.backends import SIMULATED
from cfdist.report import screen
from cfdist.report.results import Results

if TYPE_CHECKING:
    from cfdist.distributed.cluster import DevicePlan
    from cfdist.model import ModelSpec

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


def print_plan(backend: str, spec: ModelSpec, plan: DevicePlan, dashboard: str | None) -> None:
    """What is about to be measured, on one line, and where to watch it."""
    if backend == SIMULATED:
        screen.print_simulated()
    screen.console.print(
        f"{spec.name} on {backend}, {screen.on_devices(plan)}, batch {spec.batch}", markup=False
    )
    screen.print_dashboard(dashboard)


def print_host(pictures: int, feeders: Sequence[int]) -> None:
    """That the host's part begins."""
    counts = ", ".join(map(str, feeders))
    screen.console.print(
        f"host: reading {pictures} pictures with {counts} "
        f"feeder{'' if list(feeders) == [1] else 's'}"
    )


def print_loops(loops: int, kind: str) -> None:
    """That the inference part begins."""
    screen.console.print(f"inference: {loops} batches of {kind} in each slot of each device")


def print_benchmark(results: Results) -> None:
    """The table, what bounds a run, and what a reader should know."""
    section = results.extra["benchmark"]
    if results.simulated:
        screen.print_simulated()
    table = Table(
        title=_title(results),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for rows in (_inference_rows(section), _host_rows(section), _end_to_end_rows(results)):
        for row in rows:
            table.add_row(*row)
        table.add_section()
    # On a narrower screen the table would break its numbers; the screen then breaks the lines.
    table.width = screen.console.measure(
        table, options=screen.console.options.update(max_width=_UNLIMITED)
    ).maximum
    screen.console.print(table)
    if section["bound"]:
        reached = results.throughput["steady"] if results.throughput else None
        screen.console.print(bound_sentence(section["bound"], reached, results.simulated))
    screen.print_remarks(results)


def _title(results: Results) -> str:
    what = "host" if results.backend is None else f"{results.backend}, batch {results.batch}"
    return f"SIMULATED benchmark: {what}" if results.simulated else f"benchmark: {what}"


def _inference_rows(section: dict[str, Any]) -> Iterator[Row]:
    inference = section["inference"]
    if inference is None:
        return
    yield _row("inference alone")
    for device in inference["devices"]:
        slots = f", {device['slots']} slots" if device["slots"] > 1 else ""
        yield _row(
            f"  {device['name']}{slots}",
            device["pictures_per_second"],
            device["batch_ms"],
            device["device_ms"],
        )
    if len(inference["devices"]) > 1:
        yield _row("  all devices", inference["pictures_per_second"])


def _host_rows(section: dict[str, Any]) -> Iterator[Row]:
    if not section["host"]:
        return
    yield _row("host alone (reading)")
    for rate in section["host"]:
        plural = "s" if rate["feeders"] > 1 else ""
        yield _row(
            f"  {rate['feeders']} feeder{plural}",
            rate["pictures_per_second"],
            cpu_ms=rate["cpu_ms_per_picture"],
        )


def _end_to_end_rows(results: Results) -> Iterator[Row]:
    whole = results.extra["benchmark"]["end_to_end"]
    if whole is None:
        return
    yield _row("end to end")
    for device in results.devices:
        yield _row(
            f"  {device['name']}",
            times=device["batch_ms"],
            device_times=device["device_ms"],
            busy=device["busy_share"],
        )
    yield _row("  steady", whole["steady_pictures_per_second"], cpu_ms=whole["cpu_ms_per_picture"])
    yield _row("  whole command", whole["end_to_end_pictures_per_second"])


def _row(
    label: str,
    rate: float | None = None,
    times: dict[str, float] | None = None,
    device_times: dict[str, float] | None = None,
    cpu_ms: float | None = None,
    busy: float | None = None,
) -> Row:
    return (
        label,
        _number(rate),
        *(_number(times and times[name]) for name in ("min", "mean", "median", "p99")),
        _number(device_times and device_times["median"]),
        _number(cpu_ms),
        "" if busy is None else f"{100 * busy:.0f} %",
    )


def _number(value: float | None) -> str:
    """Three digits or more, never a power of ten."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def bound_sentence(bound: dict[str, Any], reached: float | None, simulated: bool) -> str:
    """What bounds a run, in one sentence.

    Args:
        bound: The results' `bound` entry.
        reached: Pictures a second of the end-to-end part, where there is such a rate.
        simulated: No real model ran.
    """
    feeders = bound["host_feeders"]
    plural = "s" if feeders > 1 else ""
    who = "simulated devices" if simulated else "devices"
    sentence = (
        f"the {who} can take {bound['devices_pictures_per_second']:.1f} pictures/s, this host can "
        f"read {bound['host_pictures_per_second']:.1f} ({feeders} feeder{plural}): the "
        f"{bound['bound_by']} bound{'s' if bound['bound_by'] == 'host' else ''} the run"
    )
    if bound["shared_cores_pictures_per_second"] is not None:
        sentence += (
            "; both use the same cores, which leaves about "
            f"{bound['shared_cores_pictures_per_second']:.1f}"
        )
    if reached is not None:
        sentence += f"; end to end it was {reached:.1f}"
    return sentence

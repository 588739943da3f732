"""The screen: what is about to run, the progress bar, and the results."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.segment import Segment
from rich.table import Table

from cfdist.errors import counted
from cfdist.monitoring import terminal
from cfdist.report.results import Results
from cfdist.storage import shown
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS, title_of

if TYPE_CHECKING:
    from cfdist.config import Config
    from cfdist.distributed.preflight import NodeCheck
    from cfdist.execution import Execution
    from cfdist.widerface.manifest import Manifest

# Stands for a steady rate that a run does not have.
TOO_SHORT = "too short"


class _Screen(Console):
    """A console that breaks no word: lines of text and cells of tables wrap between words.

    Where the output goes into a file or a pipe, a line stays one, however long.
    """

    def __init__(self, **settings: Any) -> None:
        """Show brackets and colons as they are: names and messages hold them."""
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, **settings)

    @property
    def file(self) -> IO[str]:
        """Where it prints: the screen, whatever libraries print to meanwhile."""
        return self._file or terminal.out()

    @file.setter
    def file(self, file: IO[str]) -> None:
        self._file = file

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's, also if the process's own output leads elsewhere meanwhile.

        COLUMNS makes it narrower, but not wider: a line that wraps cannot be replaced.
        """
        found = super().size
        with contextlib.suppress(OSError, ValueError):
            columns = os.get_terminal_size(self.file.fileno()).columns or found.width
            is_limited = self._width is not None or os.environ.get("COLUMNS", "").isdigit()
            width = min(columns, found.width) if is_limited else columns
            return ConsoleDimensions(width, found.height)
        return found

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    def inform(self, *objects: Any, **settings: Any) -> None:
        """Print what a quiet run leaves out."""
        if not terminal.settings.is_quiet:
            self.print(*objects, **settings)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print as `Console.print` does."""
        shown: list[Any] = []
        for one in objects:
            if isinstance(one, Table):
                self._keep_words(one)
            if isinstance(one, Table) and self.is_terminal and self._is_too_wide(one):
                shown += map(self._wrapped, _rows_as_lines(one))
            else:
                shown.append(self._wrapped(one) if isinstance(one, str) else one)
        if self.is_terminal and any(isinstance(one, Table) for one in shown):
            settings = {"soft_wrap": False, "crop": False} | settings  # so that its title wraps
        if len(shown) > len(objects):
            settings = {"sep": "\n"} | settings
        super().print(*shown, **settings)

    def _wrapped(self, text: str) -> str:
        """A text in lines no longer than a terminal's, or than a word."""
        if not self.is_terminal:
            return text
        wrapper = textwrap.TextWrapper(
            self.width, replace_whitespace=False, break_long_words=False, break_on_hyphens=False
        )
        lines: list[str] = []
        for line in text.split("\n"):
            wrapper.subsequent_indent = line[: len(line) - len(line.lstrip())] + "  "
            lines += wrapper.wrap(line) or [""]
        return "\n".join(lines)

    def _is_too_wide(self, table: Table) -> bool:
        lines = Segment.split_lines(self.render(table))
        return max(map(Segment.get_line_length, lines), default=0) > self.width

    def _keep_words(self, table: Table) -> None:
        """Make no column narrower than its longest word, or than a whole figure."""
        wide = self.options.update(width=1000)
        for column in table.columns:
            least = [self.measure(column.header, options=wide).minimum]
            for cell in column.cells:
                text = str(cell)
                words, indent = text.split(), len(text) - len(text.lstrip())
                is_whole = column.justify == "right" or not words
                least.append(cell_len(text if is_whole else max(words, key=cell_len)))
                least[-1] += 0 if is_whole else indent
            column.min_width = max(least)


def _rows_as_lines(table: Table) -> list[str]:
    """A table that is wider than the screen, as lines of titles and figures."""
    titles = [" ".join(str(column.header).split()) for column in table.columns]
    lines = [str(table.title or "")]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = [str(cell) for cell in row]
        named = (f"{title} {cell}".strip() for title, cell in zip(titles, cells, strict=True))
        pairs = [name for name, cell in zip(named, cells, strict=True) if cell.strip()]
        lines.append(f"  {', '.join(pairs)}" if pairs else "")
    return lines


console = _Screen()


def print_plan(config: Config, there: Execution, manifest: Manifest | None) -> None:
    """What is about to run, on one line, and where to watch it.

    Args:
        config: The run's.
        there: The models, and the devices that run them.
        manifest: The pictures; `None` if other lines say what the devices get.
    """
    model = there.models[0]
    if model.is_simulated and not terminal.settings.is_quiet:
        print_simulated()
    used = " and ".join(dict.fromkeys(one.backend for one in there.models))
    devices = f"{counted(there.plan.count, 'device')} x {counted(there.plan.threads, 'thread')}"
    line = f"{model.spec.name} on {used}, {devices}, batch {model.spec.batch}"
    if manifest:
        pictures = f"{counted(len(manifest.pictures), 'picture')} of dataset={config.dataset.name}"
        if manifest.passes > 1:
            pictures = f"{manifest.passes} passes over {pictures}"
        if config.dataset.kind == "sample":
            pictures += " (the embedded sample set; no data set named)"
        line += f": {pictures}"
    console.inform(line)
    if model.remark:
        console.inform(f"backend=auto: {model.remark}")
    print_devices(there)


def print_devices(there: Execution) -> None:
    """What is to be known of the devices, and where to watch the run."""
    print_nodes(there.checks)
    for note in there.notes:
        console.inform(f"note: {note}")
    print_dashboard(there.dashboard)


def print_nodes(checks: Sequence[NodeCheck]) -> None:
    """The nodes of a cluster, on a line if all can have devices; else each with what it lacks."""
    if not any(check.faults for check in checks):
        if len(checks) > 1:
            hosts = ", ".join(sorted({check.node.host for check in checks}))
            line = f"{len(checks)} nodes ({hosts}): same versions, model and pictures"
            console.inform(line)
        return
    titles = ("host", "Ray", "Python", "cfdist", "free memory", "free disk", "left out, for it")
    table = titled_table("nodes of the cluster", titles, ())
    table.box = SIMPLE_HEAD
    for check in checks:
        cells = ["?"] * 5
        if check.answer:
            sizes = (check.answer.memory, check.answer.disk)
            cells = [*check.answer.versions, *(f"{size / 1e9:.1f} GB" for size in sizes)]
        faults = "; ".join(check.faults) or "-"
        table.add_row(check.node.host, *cells, faults)
    console.inform(table)


def print_dashboard(dashboard: str | None) -> None:
    """Say where to watch the run, if there is a dashboard."""
    if not dashboard:
        return
    from cfdist.distributed.starting import token_command

    console.inform(f"dashboard: {dashboard}")
    if command := token_command():
        console.inform(f"  it asks for a token, which this prints: {command}")


def print_simulated() -> None:
    """Say that what follows comes from no chip and no model."""
    console.print(
        "[bold]SIMULATED[/bold]: no model runs and nothing is found; the devices only wait as long "
        "as a chip would, so that the figures are those of this host",
        markup=True,
    )


def finish(results: Results, folder: Path) -> int:
    """Write the results into the run's folder and show them; returns the job's exit code."""
    path = results.write(folder)
    print_results(results)
    print_path(path)
    return results.exit_code


def print_path(path: Path) -> None:
    """Say where the results are."""
    console.print(f"results: {shown(path)}")


def print_export(report: dict[str, Any]) -> None:
    """Say what was exported and how far it is from PyTorch: the results' section `export`."""
    shape = ", ".join(map(str, report["input"]["shape"]))
    console.print(
        f"{report['path']}: opset {report['opset']}, {report['bytes'] / 1e6:.1f} MB, input "
        f"{report['input']['dtype']} ({shape})"
    )
    outputs = list(report["outputs"])
    table = titled_table("largest difference from PyTorch", ["pictures"], outputs)
    for kind, differences in report["max_difference"].items():
        table.add_row(kind, *(f"{differences[name]:.1e}" for name in outputs))
    console.print(table)


def print_results(results: Results) -> None:
    """Say what a run found: APs, throughput, devices, failures."""
    if results.simulated:
        print_simulated()
    if results.ap:
        has_quirks = not results.ap.keys() <= PROTOCOLS.keys()
        (print_compact if has_quirks else console.print)(_ap_table(results))
    if results.test:
        console.print(f"test: {results.test}")
    if results.throughput:
        console.print(_speed_line(results, results.throughput))
        for device in results.devices:
            console.inform(_device_line(device))
    # Without a gate, a verdict on what cannot be compared would be none.
    if (expected := results.expected) and (
        expected["comparable"] or results.config["eval"]["gate"]
    ):
        verdict = "reached" if expected["met"] else "MISSED"
        console.print(f"expected AP {verdict} (tolerance {expected['tolerance']})")
    print_remarks(results)


def print_remarks(results: Results) -> None:
    """Print the notes, and the first pictures that failed."""
    for note in results.notes:
        console.print(f"note: {note}")
    for picture, reason in results.failures[:5]:
        console.print(f"failed: {picture}: {reason}")
    if more := results.failures[5:]:
        console.print(f"failed: {len(more)} more, see results.json")


def titled_table(title: str, texts: Iterable[str], figures: Iterable[str]) -> Table:
    """An empty table with columns of text at the left and of figures at the right."""
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(name)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def print_compact(table: Table) -> None:
    """Print a table of many figures; into a file or a pipe as wide as its cells."""
    table.box, table.collapse_padding = SIMPLE_HEAD, True
    table.show_edge = table.pad_edge = False
    if not console.is_terminal:
        table.width = console.measure(table, options=console.options.update(width=1000)).maximum
    console.print(table)


def percents(ap: dict[str, float]) -> list[str]:
    """A cell for each difficulty, "-" for those without an AP."""
    return [f"{100 * ap[name]:.2f} %" if name in ap else "-" for name in DIFFICULTIES]


def points(apart: float, decimals: int = 2) -> str:
    """A difference between two APs (fractions) in points, with its sign; never "-0.00"."""
    return f"{round(100 * apart, decimals) + 0.0:+.{decimals}f}"


def _ap_table(results: Results) -> Table:
    title = f"WIDER FACE AP over {results.done} pictures"
    if (results.passes or 1) > 1:
        title += f" (the first of {results.passes} passes)"
    table = titled_table(title, ["protocol"], DIFFICULTIES)
    chosen = next(iter(results.ap.values()))
    for protocol, ap in results.ap.items():
        cells = percents(ap)
        if protocol not in PROTOCOLS:  # quirks: how much they add
            cells = [
                f"{cell} {points(ap[name] - chosen[name])}"
                for cell, name in zip(cells, DIFFICULTIES, strict=True)
            ]
        table.add_row(title_of(protocol), *cells)
        if results.expected and results.expected["protocol"] == protocol:
            table.add_row("  expected", *percents(results.expected["ap"]))
    return table


def _speed_line(results: Results, throughput: dict[str, float | None]) -> str:
    steady, whole = throughput["steady"], throughput["end_to_end"]
    seconds = results.seconds
    rate = f"{TOO_SHORT} for a steady rate" if steady is None else f"{steady:.1f} pictures/s steady"
    return (
        f"{results.backend}, batch {results.batch}: {rate}, "
        f"{whole:.1f} end to end; {seconds['total']:.1f} s in all: "
        f"{seconds['start_up']:.1f} start-up, {seconds['run']:.1f} run, "
        f"{seconds['evaluation']:.1f} evaluation"
    )


def _device_line(device: dict[str, Any]) -> str:
    times, pure = device["batch_ms"], device["device_ms"]
    batch = "no full batch" if times is None else f"{times['median']:.1f} ms a batch (median)"
    if pure is not None:
        batch += f", of which {pure['median']:.1f} ms on the device"
    name = device["name"] if device["chip"] is None else f"{device['name']} (chip {device['chip']})"
    return (
        f"  {name}: {device['pictures']} pictures, busy {100 * device['busy_share']:.0f} %, {batch}"
    )

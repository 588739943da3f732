"""The screen: the results table and the one progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cfdist.report.results import Results
from cfdist.widerface.ground_truth import DIFFICULTIES

if TYPE_CHECKING:
    from cfdist.backends.model import BackendModel
    from cfdist.config import Config
    from cfdist.distributed.plan import DevicePlan
    from cfdist.distributed.rounds import Listener
    from cfdist.network.export import ExportReport
    from cfdist.phases import Phases
    from cfdist.widerface.manifest import Manifest

PROTOCOL_TITLES = {
    "official": "official (IoU 0.5)",
    "guide": "guide (IoU 0.4)",
}

console = Console(highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    """Finished pictures a second, since the first was handed out."""

    def render(self, task: Task) -> Text:
        """The rate so far."""
        seconds = task.finished_time or task.elapsed
        done = task.completed - task.fields["before"]
        if not seconds or not done:
            return Text("- pictures/s")
        return Text(f"{done / seconds:.1f} pictures/s")


class PictureProgress:
    """One progress bar over pictures, with rate and time left."""

    def __init__(self, total: int) -> None:
        self._failed = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            # Drawing takes processor time from the feeders: seldom, and only where one looks on.
            auto_refresh=console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(
            "loading the model", total=total, start=False, before=0
        )

    def __enter__(self) -> PictureProgress:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def listener(self, phases: Phases) -> Listener:
        """Shows how an evaluation goes on, and ends the phase "devices" when they are ready."""
        from cfdist.distributed.rounds import Listener

        def on_ready(done: int) -> None:
            phases.end("devices")
            self.start(done)

        return Listener(
            on_ready, lambda report: self.advance(report.done + report.failed, report.failed)
        )

    def start(self, done: int) -> None:
        """The devices are ready; so many pictures were done before."""
        self._progress.update(self._task, description="pictures", completed=done, before=done)
        self._progress.start_task(self._task)

    def advance(self, pictures: int, failed: int) -> None:
        """So many pictures are finished, of which some failed."""
        self._failed += failed
        note = f"pictures [red]({self._failed} failed)[/red]" if self._failed else "pictures"
        self._progress.update(self._task, advance=pictures, description=note)


def print_plan(
    config: Config,
    model: BackendModel,
    manifest: Manifest,
    plan: DevicePlan,
    dashboard: str | None,
    beside: str = "",
) -> None:
    """What is about to run, on one line, and where to watch it.

    Args:
        config: The run's.
        model: What the devices run.
        manifest: The pictures.
        plan: The devices.
        dashboard: The dashboard's URL, or `None` without one.
        beside: The backend of a second model that each device runs.
    """
    count = len(manifest.pictures)
    pictures = f"{count} picture{'s' if count > 1 else ''} of dataset={config.dataset.name}"
    if manifest.passes > 1:
        pictures = f"{manifest.passes} passes over {pictures}"
    if config.dataset.kind == "sample":
        pictures += " (the embedded sample set; no data set named)"
    if model.is_simulated:
        print_simulated()
    backend = f"{model.backend} and {beside}" if beside else model.backend
    console.print(
        f"{model.spec.name} on {backend}, {on_devices(plan)}, batch {model.spec.batch}: {pictures}",
        markup=False,
    )
    if model.remark:
        console.print(f"backend=auto: {model.remark}", markup=False)
    print_dashboard(dashboard)


def on_devices(plan: DevicePlan) -> str:
    """How many devices of how many threads."""
    return (
        f"{plan.count} device{'s' if plan.count > 1 else ''} x "
        f"{plan.threads} thread{'s' if plan.threads > 1 else ''}"
    )


def print_dashboard(dashboard: str | None) -> None:
    """Where to watch the run."""
    if dashboard:
        console.print(f"dashboard: {dashboard}", markup=False)


def print_simulated() -> None:
    """That what follows is no chip's and no model's."""
    console.print(
        "[bold]SIMULATED[/bold]: no model runs and nothing is found; the devices only wait as long "
        "as a chip would, so that the figures are those of this host"
    )


def print_path(path: Path) -> None:
    """Where the results are."""
    console.print(f"results: {path}", markup=False)


def print_export(report: ExportReport) -> None:
    """What was exported and how far it is from PyTorch."""
    shape = ", ".join(map(str, report.input_shape))
    console.print(
        f"{report.path}: opset {report.opset}, {report.size / 1e6:.1f} MB, input "
        f"{report.input_dtype} ({shape})",
        markup=False,
    )
    table = Table(title="largest difference from PyTorch", title_justify="left")
    table.add_column("pictures")
    for name in report.output_shapes:
        table.add_column(name, justify="right")
    for kind, differences in report.differences.items():
        table.add_row(kind, *(f"{differences[name]:.1e}" for name in report.output_shapes))
    console.print(table)


def print_comparison(comparison: dict[str, Any]) -> None:
    """How far the candidate is from the reference: heads, boxes, AP, and the verdict."""
    if comparison["heads"]:
        table = Table(title="head maps, candidate against reference", title_justify="left")
        for column in ("head", "largest difference", "mean difference", "cosine"):
            table.add_column(column, justify="left" if column == "head" else "right")
        for name, head in comparison["heads"].items():
            table.add_row(
                name, f"{head['max']:.2e}", f"{head['mean']:.2e}", f"{head['cosine']:.8f}"
            )
        console.print(table)
    boxes = comparison["boxes"]
    console.print(
        f"boxes: {boxes['found']} of {boxes['reference']} of the reference found again "
        f"({100 * boxes['found_share']:.2f} %), {boxes['confirmed']} of {boxes['candidate']} of "
        f"the candidate confirmed ({100 * boxes['confirmed_share']:.2f} %); scores differ by "
        f"{boxes['mean_score_difference']:.1e} on average, {boxes['largest_score_difference']:.1e} "
        "at most"
    )
    table = Table(title="WIDER FACE AP", title_justify="left")
    table.add_column("protocol")
    table.add_column("model")
    for difficulty in DIFFICULTIES:
        table.add_column(difficulty, justify="right")
    for protocol in comparison["reference"]["ap"]:
        for model in ("reference", "candidate"):
            ap = comparison[model]["ap"][protocol]
            cells = (f"{100 * ap[name]:.2f} %" for name in DIFFICULTIES)
            table.add_row(PROTOCOL_TITLES[protocol], model, *cells)
        apart = comparison["ap_difference"][protocol]
        table.add_row("", "difference", *(f"{100 * apart[name]:+.3f}" for name in DIFFICULTIES))
    console.print(table)
    past = [name for name, within in comparison["within"].items() if not within]
    console.print(f"PAST THE TOLERANCE: {', '.join(past)}" if past else "within the tolerances")


def print_results(results: Results) -> None:
    """The short table: APs, throughput, devices, failures."""
    if results.simulated:
        print_simulated()
    if results.ap:
        console.print(_ap_table(results))
    if results.throughput:
        console.print(_speed_line(results))
        for device in results.devices:
            console.print(_device_line(device))
    if results.expected:
        verdict = "reached" if results.expected["met"] else "MISSED"
        console.print(f"expected AP {verdict} (tolerance {results.expected['tolerance']})")
    print_remarks(results)


def print_remarks(results: Results) -> None:
    """The notes, and the first of the pictures that failed."""
    for note in results.notes:
        console.print(f"note: {note}", markup=False)
    shown = list(results.failures)[:5]
    for picture, reason in shown:
        console.print(f"failed: {picture}: {reason}", markup=False)
    if len(results.failures) > len(shown):
        console.print(f"failed: {len(results.failures) - len(shown)} more, see results.json")


def _ap_table(results: Results) -> Table:
    title = f"WIDER FACE AP over {results.done} pictures"
    if results.passes and results.passes > 1:
        title += f" (the first of {results.passes} passes)"
    table = Table(title=title, title_justify="left")
    table.add_column("protocol")
    for difficulty in DIFFICULTIES:
        table.add_column(difficulty, justify="right")
    for protocol, ap in results.ap.items():
        table.add_row(
            PROTOCOL_TITLES[protocol],
            *(f"{100 * ap[difficulty]:.2f} %" for difficulty in DIFFICULTIES),
        )
        if results.expected and results.expected["protocol"] == protocol:
            table.add_row("  expected", *_expected_cells(results.expected))
    return table


def _expected_cells(expected: dict) -> list[str]:
    ap = expected["ap"]
    return [f"{100 * ap[name]:.2f} %" if name in ap else "-" for name in DIFFICULTIES]


def _speed_line(results: Results) -> str:
    steady, whole = results.throughput["steady"], results.throughput["end_to_end"]
    seconds = results.seconds
    rate = "-" if steady is None else f"{steady:.1f}"
    return (
        f"{results.backend}, batch {results.batch}: {rate} pictures/s steady, "
        f"{whole:.1f} end to end; {seconds['total']:.1f} s in all: "
        f"{seconds['start_up']:.1f} start-up, {seconds['run']:.1f} run, "
        f"{seconds['evaluation']:.1f} evaluation"
    )


def _device_line(device: dict) -> str:
    times, pure = device["batch_ms"], device["device_ms"]
    batch = "no full batch" if times is None else f"{times['median']:.1f} ms a batch (median)"
    if pure is not None:
        batch += f", of which {pure['median']:.1f} ms on the device"
    return (
        f"  {device['name']}: {device['pictures']} pictures, "
        f"busy {100 * device['busy_share']:.0f} %, {batch}"
    )

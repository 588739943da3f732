"""`job=detect`: the faces in any pictures, as JSON lines, as COCO, and drawn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cfdist import backends, execution
from cfdist.backends.base import DeviceSettings
from cfdist.coco import COCO, write_coco
from cfdist.config import Config
from cfdist.detecting.device import FaceFinder, FoundChunk
from cfdist.detecting.files import (
    ANNOTATED,
    LINES,
    PARTIAL,
    annotated_names,
    write_annotated,
    write_lines,
)
from cfdist.detecting.pictures import KEY, FoundPictures, find_pictures
from cfdist.detections import Detections
from cfdist.devices.base import DeviceReport
from cfdist.distributed.events import Event, event_notes
from cfdist.distributed.rounds import Timeline, run_rounds
from cfdist.errors import UserError, counted
from cfdist.execution import Execution
from cfdist.files import disk_as_user_error
from cfdist.machine import available_cores
from cfdist.preprocess import PictureError
from cfdist.report import screen
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Results, damage_notes, device_entry, phase_seconds
from cfdist.storage import shown


@dataclass
class Run:
    """What the devices gave.

    Attributes:
        found: Picture -> what was found in it.
        timeline: When.
        undrawn: (picture, reason) of those of which no copy could be made.
        reports: Device -> what it did.
        events: What happened to devices and pictures.
    """

    timeline: Timeline
    found: dict[str, Detections] = field(default_factory=dict)
    undrawn: list[tuple[str, str]] = field(default_factory=list)
    reports: dict[str, DeviceReport] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


def main(config: Config, output: Path, started: float) -> int:
    """Detect, write the files and show the results; returns the exit code."""
    if config.input is None:
        raise UserError(f"{KEY}: not given; name a picture, a folder or a pattern: {KEY}=photos")
    backends.refuse_simulated(config.backend.name, f"backend={config.backend.name}")
    pictures = find_pictures(config.input, config.dataset.damaged == "use")
    model = execution.find_model(config)  # may measure which runtime is the fastest
    with execution.start(config, [model], pictures=pictures.items) as there:
        screen.print_plan(config, there, None)
        line = f"{len(pictures.items)} pictures of {KEY}={config.input}"
        screen.console.print(line)
        ready = time.time()
        run = Run(Timeline(there.plan.streams))
        with _kept_if_it_ends_early(run, len(pictures.items), output):
            _run(config, there, pictures, output, run)
    ran = time.time()
    refused = [Detections(name, error=reason) for name, reason in pictures.refused]
    found = sorted([*run.found.values(), *refused], key=lambda one: one.id)
    _write(found, output)
    ended, timeline = time.time(), run.timeline
    failures = [(one.id, one.error) for one in found if one.error is not None]
    damaged = [(one.id, one.damage) for one in found if one.damage is not None]
    values = config.model_dump()
    values["dataset"]["name"] = None  # these are none of its pictures
    results = Results(
        job="detect",
        total=len(found),
        done=len(found) - len(failures),
        failures=failures,
        damaged=damaged,
        seconds=phase_seconds(started, ready, ran, ended),
        throughput={
            "steady": timeline.steady_rate,
            "end_to_end": len(run.found) / (ended - started),
        },
        devices=[
            device_entry(name, one, timeline.seconds, timeline.started_at)
            for name, one in sorted(run.reports.items())
        ],
        model={"path": str(model.spec.path), "sha256": model.spec.sha256},
        backend=model.backend,
        batch=model.spec.batch,
        config=values,
        notes=[*_notes(config, pictures, run), *damage_notes(config, damaged)],
        events=run.events,
        extra={"faces": sum(len(one.scores) for one in found)},
    )
    line = f"{results.extra['faces']} faces with a score of {config.detect.threshold:g} or more"
    screen.console.print(f"{line} in {results.done} pictures: {shown(output / LINES)}")
    if config.detect.annotate and results.done:
        screen.console.print(f"drawn into copies of the pictures: {shown(output / ANNOTATED)}")
    return screen.finish(results, output)


@contextlib.contextmanager
def _kept_if_it_ends_early(run: Run, wanted: int, output: Path) -> Iterator[None]:
    """Write what a run has found if the `with` block fails or is interrupted."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if run.found:
                found = sorted(run.found.values(), key=lambda one: one.id)
                write_lines(output / PARTIAL, found)
                place = shown(output / PARTIAL)
                screen.console.print(f"{len(found)} of {wanted} pictures are in {place}")
        raise


def _write(found: list[Detections], output: Path) -> None:
    """Write the detections of all pictures, in their order."""
    with disk_as_user_error(output):
        write_lines(output / LINES, found)
        write_coco(output / COCO, found)
        (output / PARTIAL).unlink(missing_ok=True)  # of a run here that ended early


def _notes(config: Config, pictures: FoundPictures, run: Run) -> list[str]:
    notes = event_notes(run.events)
    if pictures.others:
        notes.append(f"left out: {counted(pictures.others, 'other file')} in {KEY}={config.input}")
    if run.undrawn:
        name, reason = run.undrawn[0]
        notes.append(
            f"{len(run.undrawn)} pictures have no copy in {ANNOTATED}/: they could not be read "
            f"again, or written; the first, {name}: {reason}"
        )
    return notes


def _run(config: Config, there: Execution, pictures: FoundPictures, output: Path, run: Run) -> None:
    """Run the pictures through the devices; draw each as soon as its faces are known."""
    from cfdist.distributed.pool import DevicePool

    (model,), plan = there.models, there.plan
    ids = [item.id for item in pictures.items]
    paths = {item.id: item.path for item in pictures.items}
    copies = dict(zip(ids, annotated_names(ids), strict=True))
    drawing: dict[str, Future[None]] = {}

    def make_device(settings: DeviceSettings) -> FaceFinder:
        return FaceFinder(model, settings, plan.readers, config.detect.threshold)

    def on_ready() -> None:
        run.timeline.started, run.timeline.started_at = time.perf_counter(), time.time()
        progress.monitor.start(0)

    def take(device: str, chunk: FoundChunk) -> list[str]:
        run.timeline.add(device, sum(one.error is None for one in chunk.found))
        for one in chunk.found:
            run.found[one.id] = one
            if config.detect.annotate and one.error is None:
                copy = output / ANNOTATED / copies[one.id]
                drawing[one.id] = threads.submit(write_annotated, copy, paths[one.id], one)
        return [one.id for one in chunk.found]

    def give_up(given_up: dict[str, str]) -> None:
        run.found |= {id: Detections(id, error=reason) for id, reason in given_up.items()}

    pool: DevicePool[FoundChunk] = DevicePool(
        plan, make_device, model.spec.batch, model.capabilities.group
    )
    make_work = execution.device_work(config, there)
    threads = ThreadPoolExecutor(available_cores(), thread_name_prefix="drawing")
    try:
        with PictureProgress(len(ids), output) as progress, pool:
            pool.monitor = progress.monitor
            run_rounds(pool, pictures.items, make_work, on_ready, take, give_up)
            pool.close()
        for id, drawn in drawing.items():
            try:
                with disk_as_user_error(output):
                    drawn.result()
            except PictureError as error:
                run.undrawn.append((id, str(error)))
    finally:
        threads.shutdown(cancel_futures=True)
    run.reports, run.events = pool.reports, list(pool.events)

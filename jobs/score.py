"""`job=score`: the AP of WIDER prediction files or COCO detections, whoever wrote them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cfdist import inputs
from cfdist.config import Config
from cfdist.errors import UserError
from cfdist.machine import available_cores
from cfdist.report import screen
from cfdist.report.accuracy import accuracy_notes, expectation, expected_notes
from cfdist.report.page.quality import Evidence
from cfdist.report.page.run import write_run_report
from cfdist.report.results import Results, check_gate, chosen_first, phase_seconds
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.own import metric_notes
from cfdist.widerface.predictions import PredictionFiles, find_prediction_files
from cfdist.widerface.quirks import quirk_notes, quirk_sets
from cfdist.widerface.scoring import Wanted, score_files

# The copies of prediction files that lie in an archive or at a URI, removed when they are read.
SCRATCH = ".predictions"


def main(config: Config, output: Path, started: float) -> int:
    """Score, show and write the results; returns the exit code."""
    check_gate(config)
    quirks = quirk_sets(config.eval.quirks, config.eval.protocol)
    wanted = Wanted(config.eval.metrics, quirks, config.eval.protocol)
    with inputs.prediction_folder(config.predictions, output / SCRATCH) as folder:
        results, evidence = _score(config, folder, wanted, started)
        exit_code = screen.finish(results, output)
        write_run_report(results, output, evidence)  # it reads the files of its pictures
    return exit_code


def _score(
    config: Config, folder: Path, wanted: Wanted, started: float
) -> tuple[Results, Evidence]:
    """The results of a folder of prediction files, and what the page shows of these."""
    truth = inputs.find_ground_truth(config.dataset)
    expected, places = _expected(config, truth)
    are_there = bool(places)
    found = find_prediction_files(folder, expected, truth)
    files: dict[str, Path | None] = {**found.found}
    if config.missing == "empty":
        files = {id: found.found.get(id) for id in expected}
    elif config.eval.gate and found.missing and not are_there:
        # Leaving pictures out would be a way through the gate.
        raise UserError(
            f"eval.gate: {len(found.missing)} of {len(expected)} pictures have no prediction file; "
            "count them as empty (missing=empty), or name the pictures that there are "
            "(dataset.root=...)"
        )

    ready = time.time()
    scores = score_files(truth, files, available_cores(), wanted)
    metric, metrics = scores.metric, scores.own.compute()
    read = time.time()
    ap = chosen_first(scores.ap(), config.eval.protocol)
    ended = time.time()

    # Where nobody has said which pictures there are, those with a file are all that was asked for.
    failures = [id for id in expected if id not in files] if are_there else []
    expected_here = expectation(config, ap, len(files))
    notes = quirk_notes(wanted.quirks) + metric_notes(metrics)
    notes += accuracy_notes(ap, metric.reach(), truth, files)
    notes += expected_notes(config, expected_here, len(files))
    results = Results(
        job="score",
        ap=ap,
        total=len(files) + len(failures),
        done=len(files),
        failures=[(id, "no prediction file") for id in failures],
        seconds=phase_seconds(started, ready, read, ended),
        config=config.model_dump(),
        notes=[*notes, *_file_notes(config, found, are_there)],
        expected=expected_here,
        extra={
            "missing": {"handling": config.missing, "pictures": found.missing},
            "metrics": metrics,
        },
    )
    labels = partial(inputs.find_face_labels, config.dataset)
    return results, Evidence(truth, metric.matched(), files, places, labels)


def _expected(config: Config, truth: GroundTruth) -> tuple[list[str], dict[str, str]]:
    """The pictures that should have a file, and where they are; nowhere if nobody has said."""
    if config.dataset.root is None and config.dataset.kind != "sample":
        return list(truth)[: config.dataset.limit], {}
    places = {item.id: item.path for item in inputs.find_pictures(config.dataset, truth).items}
    return list(places), places


def _file_notes(config: Config, found: PredictionFiles, are_there: bool) -> Iterator[str]:
    """Which pictures have no file, and which files no picture."""
    if found.missing:
        count, total = len(found.missing), len(found.missing) + len(found.found)
        lacking = (
            f"{count} of {total} pictures have no prediction file{_such_as(found.missing, count)}"
        )
        if config.missing == "empty":
            yield (
                f"{lacking}; they count as pictures in which nothing was found, so the AP is too "
                "low if nobody looked at them (missing=skip leaves them out)"
            )
        else:
            subset = "" if are_there else "; dataset.root=... expects only the pictures in it"
            yield (
                f"{lacking}; their faces do not count, so the AP is too high if nothing was found "
                f"in them (missing=empty counts them{subset})"
            )
    for files, what in (
        (found.renamed, "were taken whose names fit a picture but for case, suffix or folder"),
        (found.others, "belong to pictures that are not asked for; left out"),
        (found.unknown, "fit no picture of the ground truth; left out"),
    ):
        if files:
            names = [f"{path.parent.name}/{path.name}" for path in files]
            yield f"{len(files)} prediction files {what}{_such_as(names, len(files))}"


def _such_as(names: Sequence[str], count: int) -> str:
    """The first names, in brackets."""
    return f" ({', '.join(names[:3])}{', ...' if count > 3 else ''})"

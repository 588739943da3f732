"""`job=score`: the AP of a folder of WIDER prediction files, whoever wrote them."""

from __future__ import annotations

import time
from pathlib import Path

from cfdist import inputs
from cfdist.config import Config
from cfdist.errors import UserError
from cfdist.files import expanded
from cfdist.machine import available_cores
from cfdist.report import screen
from cfdist.report.results import Results, check_gate, chosen_first, expected_ap, phase_seconds
from cfdist.widerface.predictions import find_prediction_files
from cfdist.widerface.scoring import score_files


def main(config: Config, output: Path, started: float) -> int:
    """Score, show and write the results; returns the exit code."""
    check_gate(config)
    if config.predictions is None:
        raise UserError("predictions: not given; name the folder of <event>/<name>.txt files")
    truth = inputs.find_ground_truth(config.dataset)
    # If the folder of the pictures is known, only its pictures are expected, else the whole set.
    if config.dataset.root is not None or config.dataset.kind == "sample":
        manifest = inputs.find_pictures(config.dataset, truth)
        expected = [item.id for item in manifest.items]
    else:
        expected = list(truth)[: config.dataset.limit]
    files, missing, unknown = find_prediction_files(expanded(config.predictions), expected)

    ready = time.time()
    metric = score_files(truth, files, available_cores())
    read = time.time()
    ap = metric.compute()
    ended = time.time()

    notes = []
    if missing:
        notes.append(
            f"{len(missing)} of {len(expected)} pictures have no prediction file; their faces do "
            "not count (name dataset.root to expect only the pictures in it)"
        )
    if unknown:
        notes.append(f"{len(unknown)} files belong to no expected picture; left out")
    results = Results(
        job="score",
        ap=chosen_first(ap, config.eval.protocol),
        total=len(expected),
        done=len(files),
        failures=[(id, "no prediction file") for id in missing],
        seconds=phase_seconds(started, ready, read, ended),
        config=config.model_dump(),
        notes=notes,
        expected=expected_ap(config, ap),
    )
    return screen.finish(results, output)

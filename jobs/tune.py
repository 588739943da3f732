"""`job=tune`: the fastest backend, precision, streams and batch here that keep the model's AP."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path

from cfdist import inputs
from cfdist.command.resuming import program
from cfdist.config import Config, flat
from cfdist.config.messages import shown as as_typed
from cfdist.distributed.session import sharing
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.files import disk_as_user_error
from cfdist.report import screen
from cfdist.report.page.run import write_run_report
from cfdist.report.results import Phases
from cfdist.storage import shown, uri_of
from cfdist.tuning.candidates import find_candidates, reference_of
from cfdist.tuning.preset import FOLDER, NAME, write_preset
from cfdist.tuning.results import print_tuning, tuning_parts, tuning_results
from cfdist.tuning.search import TIME_OVER, Outcome, search
from cfdist.tuning.trials import Trials


def main(config: Config, output: Path, started: float) -> int:
    """Search, show and write the results and the preset; returns the exit code."""
    phases = Phases(started)
    phases.end("imports")
    if config.preprocess.size == "own" or config.preprocess.flip:  # as a preset may say
        raise UserError(
            "job=tune: measures letterboxed pictures, each once; leave preprocess.size and "
            "preprocess.flip, or the preset that sets them, out"
        )
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    manifest = replace(manifest, items=manifest.items[: config.tune.pictures])
    trials = Trials(config, output, truth, manifest)
    reference = reference_of(config)
    candidates, left_out = find_candidates(config)
    trials.write()
    phases.end("checks")
    screen.console.inform(
        f"{len(candidates)} candidates on {len(manifest.items)} pictures, for "
        f"{config.tune.minutes:g} minute{'' if config.tune.minutes == 1 else 's'} at most"
        + (f"; {len(trials)} runs are there from an earlier command" if len(trials) else "")
    )
    with sharing():
        limits = (config.tune.tolerance, config.tune.minutes)
        outcome = search(trials, candidates, reference, limits)
        phases.end("run")
    phases.end("shut_down")
    best = outcome.best
    if best is None:
        raise StoppedError(_nothing_left(outcome), ExitCode.PAST_TOLERANCE)
    with disk_as_user_error(output):
        said = f"{best.rate:.2f} pictures/s by job=tune, {time.strftime('%Y-%m-%d')}: "
        preset = write_preset(config, best.candidate, output, f"{said}{best.candidate}")
    results = tuning_results(config, outcome, left_out, preset, phases)
    print_tuning(results, _next_command(config, output))
    screen.print_path(results.write(output))
    write_run_report(results, output, None, lambda: tuning_parts(results))
    return results.exit_code


def _nothing_left(outcome: Outcome) -> str:
    """Why there is no candidate."""
    reasons = {one.reason: str(one.candidate) for one in outcome.standings}
    if TIME_OVER in reasons:
        return (
            "job=tune: the time was over before a candidate had been measured; go on for longer, "
            "with a greater tune.minutes"
        )
    reason, name = next(iter(reasons.items()))
    return f"job=tune: no candidate is left; {name}: {reason}"


def _next_command(config: Config, output: Path) -> str:
    """What to type for a run with the preset on the same pictures."""
    values = flat(config.model_dump())
    data = [f"{key}={as_typed(values[key])}" for key in sorted(config.typed())
            if key.startswith("dataset.")]  # fmt: skip
    chosen = [f"dataset={config.dataset.name}"] if "dataset" in config.typed() else []
    is_here = uri_of(output) is None
    folder = output / FOLDER if is_here else Path(FOLDER)
    preset = [f"--config-dir={folder}", f"experiment={NAME}"]
    copied = "" if is_here else f"copy {shown(output)}/{FOLDER} here, then "
    return copied + shlex.join([*program(), *preset, *chosen, *data])

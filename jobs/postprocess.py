"""`job=postprocess`: output files to WIDER FACE prediction files, the guide's last step."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfdist import dumps, inputs
from cfdist.config import Config
from cfdist.distributed import cluster
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds

KEY = "postprocess.input"


def main(config: Config, output: Path, started: float) -> int:
    """Write the prediction files and the results; returns the exit code."""
    if config.postprocess.input is None:
        raise UserError(f"{KEY}: not given; name the folder of the files that job=infer left")
    source = Path(config.postprocess.input).expanduser().absolute()
    target = Path(config.postprocess.output or output / "predictions").expanduser().absolute()
    dumps.refuse_existing(target, "postprocess.output")
    spec = inputs.conventions(config.model)
    found = dumps.find_dumps(source, KEY)
    fingerprint = _check_records(source, found, spec)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        raise UserError(
            f"{KEY}={source}: made from another list of pictures than this run's, or from files of "
            "another size; give the same dataset.* as then"
        )
    stems = dumps.ids_by_stem(item.id for item in manifest.items)
    usable, failures = dumps.match_dumps(found, manifest.items, spec)
    if not usable:
        _refuse_all(source, found, stems, failures)

    with cluster.session(config.cluster.address, config.cluster.dashboard) as dashboard:
        if dashboard:
            screen.console.print(f"dashboard: {dashboard}", markup=False)
        ready = time.time()
        failures += _write_files(usable, spec, target, config.eval.protocol)
    ended = time.time()

    notes = ["job=score gives the AP of these files"]
    if unknown := len(found.keys() - stems.keys()):
        notes.append(f"output files of {unknown} other names belong to no picture; left out")
    results = Results(
        job="postprocess",
        ap={},
        total=len(manifest.items),
        done=len(manifest.items) - len(failures),
        failures=sorted(failures),
        seconds=phase_seconds(started, ready, ended),
        config=config.model_dump(),
        notes=notes,
    )
    path = results.write(output)
    screen.console.print(
        f"{results.done} prediction files in {target}, written as eval={config.eval.protocol} "
        f"does, {len(usable) / max(ended - ready, 1e-9):.1f} a second",
        markup=False,
    )
    screen.print_results(results)
    screen.print_path(path)
    return results.exit_code


def _check_records(
    source: Path, found: Mapping[str, Mapping[int, Path]], spec: ModelSpec
) -> str | None:
    """Hold the records of all folders with output files to this run's settings.

    Returns:
        The fingerprint of the pictures they were made from, where a record has it.

    Raises:
        UserError: files of a run with other settings.
    """
    folders = {source, *(path.parent for files in found.values() for path in files.values())}
    expected = dumps.DumpRecord.of(spec, None)
    keys = ("convention", "height", "width")
    records = [dumps.check_record(folder, expected, keys, KEY) for folder in sorted(folders)]
    return next((record["fingerprint"] for record in records if record), None)


def _refuse_all(
    source: Path,
    found: Mapping[str, object],
    stems: Mapping[str, str],
    failures: Sequence[tuple[str, str]],
) -> None:
    """Say why not one picture has usable output files.

    Raises:
        UserError: always.
    """
    if found.keys().isdisjoint(stems):
        raise UserError(
            f"{KEY}={source}: output files of none of the {len(stems)} pictures "
            f"({len(found)} other names found); expected <picture>_0{dumps.SUFFIX} to "
            f"<picture>_{dumps.OUTPUTS - 1}{dumps.SUFFIX}: name the folder that job=infer left, "
            "and the dataset it was made from"
        )
    reason = next(reason for id, reason in failures if id.rpartition("/")[2] in found)
    raise UserError(f"{KEY}={source}: no picture's output files can be used; the first: {reason}")


def _write_files(
    usable: Sequence[dumps.Dump], spec: ModelSpec, target: Path, style: str
) -> list[tuple[str, str]]:
    """Write the folder, all cores at work, whole or not at all; returns what failed and why."""
    from cfdist.distributed.file_steps import run_chunks, write_predictions

    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    failures: list[tuple[str, str]] = []
    try:
        with screen.PictureProgress(len(usable)) as progress:
            progress.start(0)
            for done, failed in run_chunks(write_predictions, usable, spec, partial, style):
                failures += failed
                progress.advance(done, len(failed))
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return failures

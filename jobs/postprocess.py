"""`job=postprocess`: raw outputs to WIDER FACE prediction files, the guide's last step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfdist import execution, inputs
from cfdist.config import Config
from cfdist.distributed.session import session
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds
from cfdist.widerface.manifest import Manifest
from cfdist.workflow.files import OUTPUTS, SUFFIX, Failures, refuse_existing, whole_folder
from cfdist.workflow.matching import (
    OutputFiles,
    RawOutput,
    find_outputs,
    ids_by_stem,
    match_outputs,
)
from cfdist.workflow.records import OutputRecord

KEY = "postprocess.input"


def main(config: Config, output: Path, started: float) -> int:
    """Write the prediction files and the results; returns the exit code."""
    if config.postprocess.input is None:
        raise UserError(f"{KEY}: not given; name the folder of the files that job=infer left")
    source = Path(config.postprocess.input).expanduser().absolute()
    target = Path(config.postprocess.output or output / "predictions").expanduser().absolute()
    refuse_existing(target, "postprocess.output")
    spec = execution.conventions(config.model)
    found = find_outputs(source, KEY)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    _check_records(source, found, spec, manifest)
    stems = ids_by_stem(item.id for item in manifest.items)
    usable, failures = match_outputs(found, manifest.items, spec)
    if not usable:
        _refuse_all(source, found, stems, failures)

    with session(config.cluster.address, config.cluster.dashboard) as dashboard:
        screen.print_dashboard(dashboard)
        ready = time.time()
        failures += _write_files(usable, spec, target, config.eval.protocol)
    ended = time.time()

    notes = ["job=score gives the AP of these files"]
    if unknown := len(found.keys() - stems.keys()):
        notes.append(f"output files of {unknown} other names belong to no picture; left out")
    results = Results(
        job="postprocess",
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


def _check_records(source: Path, found: OutputFiles, spec: ModelSpec, manifest: Manifest) -> None:
    """Check the records of all folders with raw outputs.

    Raises:
        UserError: files of a run with other settings or other pictures.
    """
    folders = {source, *(path.parent for files in found.values() for path in files.values())}
    expected = OutputRecord.of(spec, None)
    for folder in sorted(folders):
        record = expected.check(folder, ("convention", "height", "width"), KEY)
        if record and record["fingerprint"] not in (None, manifest.fingerprint):
            raise UserError(
                f"{KEY}={source}: made from another list of pictures than this run's, or from "
                "files of another size; give the same dataset.* as then"
            )


def _refuse_all(
    source: Path,
    found: OutputFiles,
    stems: Mapping[str, str],
    failures: Failures,
) -> None:
    """Say why not one picture has usable output files.

    Raises:
        UserError: always.
    """
    if found.keys().isdisjoint(stems):
        raise UserError(
            f"{KEY}={source}: output files of none of the {len(stems)} pictures "
            f"({len(found)} other names found); expected <picture>_0{SUFFIX} to "
            f"<picture>_{OUTPUTS - 1}{SUFFIX}: name the folder that job=infer left, "
            "and the dataset it was made from"
        )
    reason = next(reason for id, reason in failures if id.rpartition("/")[2] in found)
    raise UserError(f"{KEY}={source}: no picture's output files can be used; the first: {reason}")


def _write_files(
    usable: Sequence[RawOutput], spec: ModelSpec, target: Path, style: str
) -> Failures:
    """Write the folder, all cores at work, whole or not at all; returns what failed and why."""
    from cfdist.workflow.stages import write_predictions

    failures: Failures = []
    with whole_folder(target) as partial, screen.PictureProgress(len(usable)) as progress:
        progress.start(0)
        for done, failed in write_predictions(usable, spec, partial, style):
            failures += failed
            progress.advance(done, len(failed))
    return failures

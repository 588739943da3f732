"""`job=postprocess`: raw outputs to WIDER FACE prediction files, the guide's last step."""

from __future__ import annotations

import time
from collections.abc import Set
from pathlib import Path
from typing import NoReturn

from cfdist import execution, inputs
from cfdist.config import Config
from cfdist.distributed.session import session
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds
from cfdist.widerface.manifest import Manifest
from cfdist.workflow.files import OUTPUTS, SUFFIX, Failures, partial_folder, refuse_existing
from cfdist.workflow.folders import find_outputs, ids_by_stem, match_outputs, output_record
from cfdist.workflow.stages import write_predictions

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
    _check_records({source, *(path.parent for path in found.values())}, spec, manifest)
    ids = ids_by_stem(item.id for item in manifest.items)
    stems = {name.rpartition("_")[0] for name in found}
    usable, failures = match_outputs(found, manifest.items, spec)
    if not usable:
        _refuse(source, {ids[stem] for stem in stems & ids.keys()}, len(stems), failures)

    with session(config.cluster.address, config.cluster.dashboard) as dashboard:
        screen.print_dashboard(dashboard)
        ready = time.time()
        with partial_folder(target) as partial, screen.PictureProgress(len(usable)) as progress:
            progress.start(0)
            style = config.eval.protocol
            failures += write_predictions(usable, spec, partial, style, progress.advance)
            partial.rename(target)
    ended = time.time()

    notes = ["job=score gives the AP of these files"]
    if unknown := len(stems - ids.keys()):
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


def _check_records(folders: Set[Path], spec: ModelSpec, manifest: Manifest) -> None:
    """Check the records of all folders with raw outputs.

    Raises:
        UserError: files of a run with other settings or other pictures.
    """
    for folder in sorted(folders):
        record = output_record(folder, spec).check(("convention", "height", "width"), KEY)
        if record and record["fingerprint"] not in (None, manifest.fingerprint):
            raise UserError(
                f"{KEY}={folder}: made from another list of pictures than this run's, or from "
                "files of another size; give the same dataset.* as then"
            )


def _refuse(source: Path, matched: Set[str], names: int, failures: Failures) -> NoReturn:
    """Say why no picture has a usable raw output.

    Args:
        source: The folder.
        matched: Ids of the pictures that have files in the folder.
        names: How many stems the files in the folder have.
        failures: (id, reason) of all pictures.

    Raises:
        UserError: always.
    """
    for id, reason in failures:
        if id in matched:
            raise UserError(
                f"{KEY}={source}: no picture's output files can be used; the first: {reason}"
            )
    raise UserError(
        f"{KEY}={source}: output files of none of the {len(failures)} pictures ({names} other "
        f"names found); expected <picture>_0{SUFFIX} to <picture>_{OUTPUTS - 1}{SUFFIX}: name the "
        "folder that job=infer left, and the dataset it was made from"
    )

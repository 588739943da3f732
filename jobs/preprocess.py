"""`job=preprocess`: pictures to the input tensors that ais_bench reads, the guide's first step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from cfdist import execution, inputs
from cfdist.config import Config
from cfdist.distributed.session import session
from cfdist.errors import UserError
from cfdist.preprocess import InputContract
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import Failures, check_space, input_bytes, input_contract
from cfdist.workflow.matching import ids_by_stem, without_input
from cfdist.workflow.records import InputRecord

KEY = "preprocess.output"


def main(config: Config, output: Path, started: float) -> int:
    """Write the input tensors that are not there yet, and the results; returns the exit code."""
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    ids_by_stem(item.id for item in manifest.items)
    contract = input_contract(execution.conventions(config.model), config.preprocess.input)
    folder = Path(config.preprocess.output or output / "bins").expanduser().absolute()
    total = len(manifest.items)
    _open_folder(folder, InputRecord.of(contract, total, manifest.fingerprint))
    missing = without_input(manifest.items, folder, contract)
    check_space(folder, len(missing) * input_bytes(contract), KEY)

    with session(config.cluster.address, config.cluster.dashboard) as dashboard:
        screen.console.print(
            f"{total} pictures of dataset={config.dataset.name} to {config.preprocess.input} input "
            f"tensors in {folder}",
            markup=False,
        )
        screen.print_dashboard(dashboard)
        ready = time.time()
        failures = _write_missing(missing, total, contract, folder)
    ended = time.time()

    notes = []
    if resumed := total - len(missing):
        notes.append(f"{resumed} input tensors were there already, of an earlier, interrupted run")
    results = Results(
        job="preprocess",
        total=total,
        done=total - len(failures),
        failures=sorted(failures),
        seconds=phase_seconds(started, ready, ended),
        config=config.model_dump(),
        notes=notes,
    )
    path = results.write(output)
    screen.console.print(
        f"{results.done} input tensors of {input_bytes(contract)} bytes in {folder}, "
        f"{len(missing) / max(ended - ready, 1e-9):.1f} a second",
        markup=False,
    )
    screen.print_results(results)
    screen.print_path(path)
    return results.exit_code


def _open_folder(folder: Path, record: InputRecord) -> None:
    """Make the folder and its record, or see that what is there is of the same run.

    Raises:
        UserError: it is not.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{KEY}={folder}: is a file; choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        if record.check(folder, [item.name for item in fields(record)], KEY) is None:
            raise UserError(
                f"{KEY}={folder}: holds files, and no {record.path(folder)} says of which run; "
                "choose another folder or remove it"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        record.write(folder)


def _write_missing(
    missing: Sequence[WorkItem], total: int, contract: InputContract, folder: Path
) -> Failures:
    """Write input tensors, all cores at work; returns (picture id, reason) of what failed."""
    from cfdist.workflow.stages import write_inputs

    temporary = folder.with_name(f".{folder.name}.partial")
    temporary.mkdir(exist_ok=True)
    failures: Failures = []
    try:
        with screen.PictureProgress(total) as progress:
            progress.start(total - len(missing))
            for done, failed in write_inputs(missing, contract, folder, temporary):
                failures += failed
                progress.advance(done, len(failed))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return failures

"""`job=preprocess`: pictures to the input tensors that ais_bench reads, the guide's first step."""

from __future__ import annotations

import time
from pathlib import Path

from cfdist import execution, inputs
from cfdist.config import Config
from cfdist.distributed.session import session
from cfdist.errors import UserError
from cfdist.files import expanded
from cfdist.report import screen
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Results, damage_notes, phase_seconds
from cfdist.storage import shown
from cfdist.workflow import files
from cfdist.workflow.stages import write_inputs

KEY = "preprocess.output"


def main(config: Config, output: Path, started: float) -> int:
    """Write the input tensors that are not there yet, and the results; returns the exit code."""
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    files.ids_by_stem(item.id for item in manifest.items)
    contract = files.input_contract(execution.conventions(config.model), config.preprocess.input)
    folder = expanded(config.preprocess.output or output / "bins").absolute()
    total = len(manifest.items)
    _open_folder(files.input_record(folder, contract, total, manifest.fingerprint))
    missing = files.without_input(manifest.items, folder, contract)
    files.check_space(folder, len(missing) * files.input_bytes(contract), KEY)

    cluster = config.cluster
    keep = cluster.keep_minutes
    with session(cluster.joined, cluster.dashboard, keep_minutes=keep) as dashboard:
        screen.console.inform(
            f"{total} pictures of dataset={config.dataset.name} to {config.preprocess.input} input "
            f"tensors in {shown(folder)}"
        )
        screen.print_dashboard(dashboard)
        ready = time.time()
        with PictureProgress(total, output) as progress:
            progress.monitor.start(total - len(missing))
            written = write_inputs(missing, contract, folder, progress.monitor.add)
    ended = time.time()

    notes = damage_notes(config, written.damaged)
    if resumed := total - len(missing):
        notes.append(f"{resumed} input tensors were there already, of an earlier, interrupted run")
    results = Results(
        job="preprocess",
        total=total,
        done=total - len(written.failures),
        failures=sorted(written.failures),
        damaged=sorted(written.damaged),
        seconds=phase_seconds(started, ready, ended),
        config=config.model_dump(),
        notes=notes,
    )
    screen.console.print(
        f"{results.done} input tensors of {files.input_bytes(contract)} bytes in {shown(folder)}, "
        f"{len(missing) / max(ended - ready, 1e-9):.1f} a second"
    )
    return screen.finish(results, output)


def _open_folder(record: files.Record) -> None:
    """Make a folder and its record, or check that the files in the folder are of the same run.

    Raises:
        UserError: the files are of another run, or the folder is a file.
    """
    folder = record.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{KEY}={folder}: is a file; choose another folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        record.write()
    elif record.check(record.settings, KEY) is None:
        raise UserError(
            f"{KEY}={folder}: holds files, and no {record.path} says of which run; choose another "
            "folder or remove it"
        )

"""`job=preprocess`: pictures to the .bin files that ais_bench reads, the guide's first step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from cfdist import dumps, inputs
from cfdist.config import Config
from cfdist.distributed import cluster
from cfdist.errors import UserError
from cfdist.preprocess import InputContract
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds
from cfdist.widerface.manifest import WorkItem

KEY = "preprocess.output"


def main(config: Config, output: Path, started: float) -> int:
    """Write the bins that are not there yet, and the results; returns the exit code."""
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    dumps.ids_by_stem(item.id for item in manifest.items)
    contract = dumps.bin_contract(inputs.conventions(config.model), config.preprocess.input)
    folder = Path(config.preprocess.output or output / "bins").expanduser().absolute()
    record = dumps.BinRecord.of(contract, len(manifest.items), manifest.fingerprint)
    _open_folder(folder, record)
    missing = _without_bin(manifest.items, folder, contract)
    dumps.check_space(folder, len(missing) * dumps.bin_bytes(contract), KEY)

    with cluster.session(config.cluster.address, config.cluster.dashboard) as dashboard:
        _print_plan(config, len(manifest.items), folder, dashboard)
        ready = time.time()
        failures = _write_missing(missing, len(manifest.items), contract, folder)
    ended = time.time()

    notes = []
    if resumed := len(manifest.items) - len(missing):
        notes.append(f"{resumed} bins were there already, of an earlier, interrupted run")
    results = Results(
        job="preprocess",
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
        f"{results.done} bins of {dumps.bin_bytes(contract)} bytes in {folder}, "
        f"{len(missing) / max(ended - ready, 1e-9):.1f} a second",
        markup=False,
    )
    screen.print_results(results)
    screen.print_path(path)
    return results.exit_code


def _open_folder(folder: Path, record: dumps.BinRecord) -> None:
    """Make the folder and its record, or see that what is there is of the same run.

    Raises:
        UserError: it is not.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{KEY}={folder}: is a file; choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        keys = [item.name for item in fields(record)]
        if dumps.check_record(folder, record, keys, KEY) is None:
            raise UserError(
                f"{KEY}={folder}: holds files, and no {dumps.record_path(folder, type(record))} "
                "says of which run; choose another folder or remove it"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        dumps.write_record(folder, record)


def _without_bin(
    items: Sequence[WorkItem], folder: Path, contract: InputContract
) -> list[WorkItem]:
    """The pictures that have no whole bin yet."""
    there = {path.name: path.stat().st_size for path in folder.iterdir()}
    size = dumps.bin_bytes(contract)
    return [item for item in items if there.get(Path(item.id).name + dumps.SUFFIX) != size]


def _write_missing(
    missing: Sequence[WorkItem], total: int, contract: InputContract, folder: Path
) -> list[tuple[str, str]]:
    """Write bins, all cores at work; returns (picture id, reason) of those that failed."""
    from cfdist.distributed.file_steps import run_chunks, write_bins

    temporary = folder.with_name(f".{folder.name}.partial")
    temporary.mkdir(exist_ok=True)
    failures: list[tuple[str, str]] = []
    try:
        with screen.PictureProgress(total) as progress:
            progress.start(total - len(missing))
            for done, failed in run_chunks(write_bins, missing, contract, folder, temporary):
                failures += failed
                progress.advance(done, len(failed))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return failures


def _print_plan(config: Config, pictures: int, folder: Path, dashboard: str | None) -> None:
    screen.console.print(
        f"{pictures} pictures of dataset={config.dataset.name} to {config.preprocess.input} bins "
        f"in {folder}",
        markup=False,
    )
    if dashboard:
        screen.console.print(f"dashboard: {dashboard}", markup=False)

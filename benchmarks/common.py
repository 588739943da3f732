"""What the benchmarks share: the product as a command, the plain steps that it is held against."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

from cfdist.errors import UserError  # noqa: E402
from cfdist.machine import available_cores  # noqa: E402
from cfdist.preprocess import letterbox_affine  # noqa: E402

SHARED = Path(os.environ.get("CFDIST_SHARED", PROJECT.parent / "shared"))
GROUND_TRUTH = SHARED / "data/wider_val_mini/ground_truth"

SIZE = 800  # the networks' input, pixels each way

# Python writes bytecode files and reads them, as under `./run.sh`.
BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}


@contextlib.contextmanager
def prediction_folder(given: Path | None, name: str) -> Iterator[Path]:
    """The folder of predictions that was given, or the golden set of that name, unpacked.

    Raises:
        UserError: neither is there.
    """
    if given is not None:
        yield given
        return
    archive = SHARED / "golden" / f"{name}.tar.gz"
    if not archive.is_file():
        raise UserError(f"no predictions at {archive}: give --predictions DIR")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as members:
        # Python before 3.10.12 and 3.11.4 knows no filter.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        members.extractall(folder, **safe)
        yield Path(folder)


def arguments_for(documentation: str) -> argparse.ArgumentParser:
    """A command line with the data set's folders and the number of rounds."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("--root", required=True, help="WIDER_val folder")
    parser.add_argument("--ground-truth", required=True, help="folder of the four .mat files")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many counts")
    return parser


def data_set(arguments: argparse.Namespace) -> list[str]:
    """The product's overrides for the data set of a command line."""
    return [
        "dataset=wider_val",
        f"dataset.root={arguments.root}",
        f"dataset.ground_truth={arguments.ground_truth}",
    ]


def picture_paths(root: str) -> list[str]:
    """The folder's pictures in order."""
    paths = sorted(str(path) for path in Path(root).rglob("*.jpg"))
    if not paths:
        sys.exit(f"{root}: no *.jpg below it")
    return paths


def product(
    overrides: Iterable[str], environment: Mapping[str, str] = BYTECODE
) -> tuple[dict[str, Any], float]:
    """Run the command; returns its results and its wall time, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        start = time.perf_counter()
        command(*overrides, f"output_dir={output}", environment=environment)
        seconds = time.perf_counter() - start
        return json.loads((output / "results.json").read_text()), seconds


def command(*overrides: str, environment: Mapping[str, str] = BYTECODE) -> None:
    """Run `python main.py` with further environment variables."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "main.py"), *overrides],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}:\n{done.stdout}{done.stderr}")


def plain_warp(path: str) -> np.ndarray:
    """A picture read and letterboxed the plain way: (800, 800, 3) u8, BGR."""
    picture = cv2.imread(path)
    height, width = picture.shape[:2]
    affine = letterbox_affine(width, height, SIZE, SIZE)
    return cv2.warpAffine(picture, affine, (SIZE, SIZE), flags=cv2.INTER_LINEAR)


def bare_pool(paths: list[str], step: Callable[[str], Any] = plain_warp) -> tuple[float, float]:
    """`step` on every path in a pool of one thread a core, nothing kept.

    Returns:
        Seconds, and milliseconds of processor time a picture.
    """
    cv2.setNumThreads(1)
    before, start = _processor_seconds(), time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(lambda path: step(path) is None, paths):
            pass
    seconds = time.perf_counter() - start
    return seconds, (_processor_seconds() - before) / len(paths) * 1000


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

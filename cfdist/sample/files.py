"""The sample set's folder, which is made whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2

from cfdist.errors import UserError
from cfdist.files import fsync, write_text
from cfdist.sample.matlab import mat_files
from cfdist.sample.pictures import render_set

SAMPLE_VERSION = "2"
"""Changes whenever the pictures or the boxes do; a set of another version is made anew."""

MARKER = "sample.json"

_JPEG_QUALITY = 85
_STALE_AFTER = 3600  # seconds; far longer than making the set takes


@dataclass(frozen=True)
class SamplePaths:
    """Where the parts of the sample set lie.

    Attributes:
        root: folder that holds `WIDER_val/images/<event>/<name>.jpg`.
        ground_truth: folder of the four .mat files.
    """

    root: Path
    ground_truth: Path


def ensure_sample(directory: Path | str) -> SamplePaths:
    """Make the sample set in `directory` unless it is there already.

    The set is written beside `directory` and renamed into place, so it is there whole or not at
    all, and two processes may do this at the same time. A set of another version is replaced.

    Raises:
        UserError: `directory` holds something else, or cannot be written to, or matplotlib has
            come without its sample data.
    """
    directory = Path(directory).resolve()
    if not is_complete(directory):
        _refuse_foreign(directory)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            _make(directory)
        except OSError as error:
            raise UserError(
                f"cannot write the sample set to {directory}: {error.strerror or error}; "
                "name a folder that can be written to, dataset.root=FOLDER"
            ) from error
    return SamplePaths(directory, directory / "ground_truth")


def is_complete(directory: Path) -> bool:
    """Whether `directory` has all files of a sample set of this version; contents are not read."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        there = all((directory / file).is_file() for file in marker["files"])
        return there and bool(marker["version"] == SAMPLE_VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sample_files() -> Iterator[tuple[str, bytes]]:
    """Path below the set's folder and content of each file, except for the marker."""
    truths = []
    for picture in render_set():
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        _, encoded = cv2.imencode(".jpg", picture.pixels, quality)
        yield f"WIDER_val/images/{picture.truth.id}.jpg", encoded.tobytes()
        truths.append(picture.truth)
    for name, content in mat_files(truths).items():
        yield f"ground_truth/{name}", content


def _make(directory: Path) -> None:
    """Write the set beside `directory`, then put it in place of what is there."""
    prefix, suffix = f".{directory.name}.", ".partial"
    for leftover in directory.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
        # Killed processes left these; younger ones may belong to a process at work.
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - leftover.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(suffix, prefix, directory.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        _write(new)
        if is_complete(directory):
            return  # another process was faster
        _refuse_foreign(directory)
        # An older set steps aside in one rename, so that no moment shows half of each.
        with contextlib.suppress(FileNotFoundError):
            os.replace(directory, old)
        try:
            os.replace(new, directory)
        except OSError:
            if not is_complete(directory):
                raise
    fsync(directory.parent)


def _write(directory: Path) -> None:
    names = []
    for name, content in sample_files():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        fsync(path)
        names.append(name)
    marker = {"version": SAMPLE_VERSION, "files": names}
    write_text(directory / MARKER, json.dumps(marker))


def _refuse_foreign(directory: Path) -> None:
    """Raise UserError where making the set would destroy what somebody else put there."""
    empty = directory.is_dir() and not any(directory.iterdir())
    if directory.exists() and not empty and not (directory / MARKER).is_file():
        raise UserError(
            f"{directory} is there and is not a sample set of this program: "
            "for pictures of your own add dataset=wider_val; for the sample set name a new folder"
        )

"""The sample set's folder and its files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.errors import UserError
from cfdist.files import atomic_write, write_text
from cfdist.monitoring.terminal import show_waiting
from cfdist.sample.pictures import render_set
from cfdist.widerface.ground_truth import DIFFICULTY_FILES, FACES_FILE, PictureTruth

SAMPLE_VERSION = "2"
"""Changes whenever the pictures or the boxes do; a set of another version is made anew."""

MARKER = "sample.json"

_JPEG_QUALITY = 85
_MAT_HEADER_BYTES = 116  # descriptive text at the start of a MATLAB 5 file


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

    Each file appears whole, and the marker that lists them all comes last. A set that was
    interrupted, damaged, or is of another version is therefore made anew. Processes that make it
    at the same time write the same bytes.

    Raises:
        UserError: `directory` holds something else, or cannot be written to, or matplotlib has
            come without its sample data.
    """
    directory = Path(directory).resolve()
    if not is_complete(directory):
        is_empty = directory.is_dir() and not any(directory.iterdir())
        if directory.exists() and not is_empty and not (directory / MARKER).is_file():
            raise UserError(
                f"{directory} is there and is not a sample set of this program: "
                "for pictures of your own add dataset=wider_val; for the sample set name a new "
                "folder"
            )
        show_waiting("making the sample set")
        try:
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


def _make(directory: Path) -> None:
    marker = directory / MARKER
    if not marker.is_file():
        write_text(marker, "{}")  # says whose folder this is, and that the set is not complete
    names = []

    def write(name: str, content: bytes) -> None:
        with atomic_write(directory / name) as temporary:
            temporary.write_bytes(content)
        names.append(name)

    truths = []
    for picture in render_set():
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        _, encoded = cv2.imencode(".jpg", picture.pixels, quality)
        write(f"WIDER_val/images/{picture.truth.id}.jpg", encoded.tobytes())
        truths.append(picture.truth)
    for name, content in mat_files(truths).items():
        write(f"ground_truth/{name}", content)
    for path in directory.glob("WIDER_val/images/*/*.jpg"):
        if str(path.relative_to(directory)) not in names:
            path.unlink(missing_ok=True)  # of an older version
    write_text(marker, json.dumps({"version": SAMPLE_VERSION, "files": names}))


def mat_files(truths: Sequence[PictureTruth]) -> dict[str, bytes]:
    """The ground truth's four files as WIDER FACE publishes them: name -> content.

    The lists of attributes (blur, pose, occlusion, ...) are left out: no evaluation reads them.

    Args:
        truths: the pictures, those of an event next to each other, boxes in whole pixels. A
            picture without faces has to have one box 0 0 0 0 that counts nowhere: the protocol
            leaves out a picture without any box, and with it the false positives there.
    """
    events: dict[str, list[PictureTruth]] = {}
    for truth in truths:
        events.setdefault(truth.id.split("/")[0], []).append(truth)

    def each(value: Callable[[PictureTruth], NDArray[Any]]) -> NDArray[np.object_]:
        """A cell an event, holding a cell with the value of each picture."""
        return _cell([_cell([value(truth) for truth in event]) for event in events.values()])

    common = {
        "event_list": _cell([np.array([event]) for event in events]),
        "face_bbx_list": each(lambda truth: truth.boxes.astype(np.int32)),
        "file_list": each(lambda truth: np.array([truth.id.split("/")[1]])),
    }
    files = {FACES_FILE: _mat(common)}
    for level, name in enumerate(DIFFICULTY_FILES):

        def one_based(truth: PictureTruth, level: int = level) -> NDArray[np.uint16]:
            """An (n, 1) column; MATLAB counts from 1."""
            return np.argwhere(truth.counted[level]).astype(np.uint16) + np.uint16(1)

        files[name] = _mat(common | {"gt_list": each(one_based)})
    return files


def _cell(items: Sequence[NDArray[Any]]) -> NDArray[np.object_]:
    """A MATLAB cell column: an (n, 1) object array."""
    cell = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        cell[row, 0] = item
    return cell


def _mat(variables: dict[str, NDArray[np.object_]]) -> bytes:
    """A MATLAB 5 file without the date and platform that scipy writes into its header."""
    buffer = io.BytesIO()
    import scipy.io  # its import takes long, and a sample set is made once

    scipy.io.savemat(buffer, variables, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, the sample set of cfdist".ljust(_MAT_HEADER_BYTES)
    return header + buffer.getvalue()[_MAT_HEADER_BYTES:]

"""A small data set in the WIDER layout, made on the spot from one free photograph.

It lets every part of the product run, and mean something, where WIDER FACE itself may not go.
The only source is a portrait in the public domain that comes with matplotlib (`sample_photo`).
The person is cut out of it and put, in many sizes, colours and states (`sample_people`), in front
of drawn backdrops (`sample_drawing`), as a table of scenes asks (`sample_scenes`), so where each
face lies is known by construction. The same versions of numpy, OpenCV and scipy give the same
bytes.

Difficulties follow the height of a face in picture pixels: easy 50 and more, medium 25 and more,
hard 10 and more (10 to 50 is what WIDER FACE calls the small scale); they are nested. Smaller
faces, and faces of which a picture's edge leaves less than a third, have a box but are in no
list: the protocol ignores them.

Coordinates are picture pixels, x to the right, y down, pixel 0 covers [0, 1).
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io

from cfdist.errors import UserError
from cfdist.files import fsync
from cfdist.widerface.sample_drawing import EFFECTS, encode_jpeg
from cfdist.widerface.sample_scenes import DIFFICULTY_HEIGHTS, Faces, Picture, Scene, render_set

SAMPLE_VERSION = "1"
"""Changes whenever the pictures or the boxes do; a set of another version is made anew."""

MARKER = "sample.json"

_JPEG_QUALITY = 85
_MAT_HEADER_BYTES = 116  # descriptive text at the start of a MATLAB 5 file
_TOKEN_BYTES = 6  # of chance in a temporary folder's name
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
    What killed processes left behind more than an hour ago is removed.

    Raises:
        UserError: `directory` holds something else, or cannot be written to, or matplotlib has
            come without its sample data.
    """
    directory = Path(directory).resolve()
    paths = SamplePaths(directory, directory / "ground_truth")
    if not is_complete(directory):
        _refuse_foreign(directory)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_siblings(directory)
            with _temporary_sibling(directory) as temporary:
                write_set(temporary, render_set())
                _move_into_place(temporary, directory)
        except OSError as error:
            raise UserError(
                f"cannot write the sample set to {directory}: {error.strerror or error}; "
                "name one that can, dataset.root=FOLDER"
            ) from error
    return paths


def is_complete(directory: Path) -> bool:
    """Whether `directory` holds a whole sample set of this version (names, not contents)."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        if marker["version"] != SAMPLE_VERSION:
            return False
        there = sum(1 for _ in (directory / "WIDER_val" / "images").glob("*/*.jpg"))
        mats = [directory / "ground_truth" / name for name in _mat_names()]
        return there == marker["pictures"] and all(mat.is_file() for mat in mats)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_foreign(directory: Path) -> None:
    """Raise UserError where making the set would destroy what somebody else put there."""
    if directory.is_dir():
        foreign = not (directory / MARKER).is_file() and any(directory.iterdir())
    else:
        foreign = directory.exists()
    if foreign:
        raise UserError(
            f"{directory} is there and is not a sample set of this program: "
            "for pictures of your own add dataset=wider_val; for the sample set name a new folder"
        )


@contextlib.contextmanager
def _temporary_sibling(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory`; gone afterwards, unless it has been renamed."""
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(_TOKEN_BYTES)}.partial")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale_siblings(directory: Path) -> None:
    """Remove what `_temporary_sibling` of killed processes has left beside `directory`.

    Younger folders may belong to a process that is at work.
    """
    pattern = f".{glob.escape(directory.name)}.{'[0-9a-f]' * (2 * _TOKEN_BYTES)}.partial"
    for leftover in directory.parent.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - leftover.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(leftover, ignore_errors=True)


def _move_into_place(temporary: Path, directory: Path) -> None:
    """Rename `temporary` to `directory`, unless another process has been faster."""
    with contextlib.suppress(FileNotFoundError):
        if is_complete(directory):
            return
        _refuse_foreign(directory)
        # An older set steps aside in one rename, so that no moment shows half of each.
        with _temporary_sibling(directory) as aside:
            os.replace(directory, aside / "old")
    try:
        os.replace(temporary, directory)
    except OSError:
        if not is_complete(directory):
            raise
    fsync(directory.parent)


# --- the set on disk ---------------------------------------------------------------------------


def write_set(directory: Path, pictures: Iterator[Picture]) -> None:
    """Write pictures, the four .mat files and, last, the marker into an existing folder."""
    shown = []
    for picture in pictures:
        path = directory / "WIDER_val" / "images" / picture.event / f"{picture.name}.jpg"
        _write(path, encode_jpeg(picture.pixels, _JPEG_QUALITY))
        shown.append((picture.event, picture.name, picture.scene, picture.faces))
    for name, content in mat_files(shown).items():
        _write(directory / "ground_truth" / name, content)
    marker = {"version": SAMPLE_VERSION, "pictures": len(shown)}
    _write(directory / MARKER, json.dumps(marker).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    fsync(path)


# --- the .mat files ----------------------------------------------------------------------------


def _mat_names() -> list[str]:
    return ["wider_face_val.mat", *(f"wider_{level}_val.mat" for level in DIFFICULTY_HEIGHTS)]


def mat_files(pictures: Sequence[tuple[str, str, Scene, Faces]]) -> dict[str, bytes]:
    """The four ground-truth files, name to content, as WIDER FACE structures them.

    Args:
        pictures: event, name, scene and faces of each, pictures of an event next to each other.
    """
    events = list(dict.fromkeys(event for event, *_ in pictures))
    by_event = [[picture for picture in pictures if picture[0] == event] for event in events]

    def cells(make: Callable[[str, Scene, Faces], np.ndarray]) -> np.ndarray:
        return _cell([_cell([make(*picture[1:]) for picture in group]) for group in by_event])

    common = {"event_list": _cell([np.array([event]) for event in events])}
    common["file_list"] = cells(lambda name, scene, faces: np.array([name]))
    for field in _labels(pictures[0][2], pictures[0][3]):
        common[field] = cells(lambda name, scene, faces, field=field: _labels(scene, faces)[field])
    files = {"wider_face_val.mat": _mat(common)}
    for level in DIFFICULTY_HEIGHTS:
        lists = cells(lambda name, scene, faces, level=level: _gt_list(faces.counted(level)))
        files[f"wider_{level}_val.mat"] = _mat(common | {"gt_list": lists})
    return files


def _labels(scene: Scene, faces: Faces) -> dict[str, np.ndarray]:
    """Boxes and labels of one picture by the names of their .mat fields.

    A picture without faces gets one box 0 0 0 0, marked invalid: the protocol leaves out a
    picture without any box, and with it the false positives there.
    """
    count = max(len(faces.boxes), 1)

    def column(values: np.ndarray | int) -> np.ndarray:
        full = np.zeros((count, 1), np.uint8)
        full[: len(faces.boxes) or 1, 0] = values if np.size(values) else 0
        return full

    boxes = faces.boxes if len(faces.boxes) else np.zeros((1, 4), np.int32)
    return {
        "face_bbx_list": boxes.astype(np.int32),
        "blur_label_list": column(max([EFFECTS[name].blur for name in scene.effects], default=0)),
        "expression_label_list": column(0),
        "illumination_label_list": column(
            max([EFFECTS[name].illumination for name in scene.effects], default=0)
        ),
        "invalid_label_list": column(0 if len(faces.boxes) else 1),
        "occlusion_label_list": column(faces.occlusion),
        "pose_label_list": column(faces.pose),
    }


def _gt_list(counted: np.ndarray) -> np.ndarray:
    """1-based indices of the true entries as an (n, 1) column of the smallest unsigned type."""
    indices = np.flatnonzero(counted) + 1
    return indices.astype(np.min_scalar_type(len(counted))).reshape(-1, 1)


def _cell(items: list[np.ndarray]) -> np.ndarray:
    """A MATLAB cell column: (n, 1) object array."""
    cell = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        cell[row, 0] = item
    return cell


def _mat(fields: dict[str, np.ndarray]) -> bytes:
    """A MATLAB 5 file without the date and platform that scipy writes into its header."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, dict(sorted(fields.items())), do_compression=True)
    header = f"MATLAB 5.0 MAT-file, cfdist sample set, version {SAMPLE_VERSION}"
    return header.ljust(_MAT_HEADER_BYTES).encode() + buffer.getvalue()[_MAT_HEADER_BYTES:]

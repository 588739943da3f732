"""The ground truth of WIDER FACE val: four MATLAB files, as the benchmark's authors publish them.

`wider_face_val.mat` holds every box; `wider_{easy,medium,hard}_val.mat` say which boxes count at
that difficulty. Boxes that do not count are ignored: finding them is neither right nor wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist import storage
from cfdist.errors import UserError
from cfdist.widerface.matfile import MatError, read_variables

DIFFICULTIES = ("easy", "medium", "hard")

WIDER_VAL_PICTURES = 3226  # in the whole validation set

FACES_FILE = "wider_face_val.mat"
DIFFICULTY_FILES = tuple(f"wider_{difficulty}_val.mat" for difficulty in DIFFICULTIES)
GROUND_TRUTH_FILES = (FACES_FILE, *DIFFICULTY_FILES)

# What `wider_face_val.mat` says of each face beside its box: label -> what its values 0, 1, .. mean
# (readme.txt of wider_face_split.zip).
LABELS = {
    "blur": ("clear", "normal", "heavy"),
    "expression": ("typical", "exaggerated"),
    "illumination": ("normal", "extreme"),
    "occlusion": ("none", "partial", "heavy"),
    "pose": ("typical", "atypical"),
    "invalid": ("valid", "invalid"),
}

# "<event>/<stem>", neither of which is "." or ".."; a line of a prediction file holds them.
_NAME = re.compile(r"(?!\.{1,2}/)[^/\\\0-\x1f\x7f]+/(?!\.{1,2}\Z)[^/\\\0-\x1f\x7f]+")


@dataclass(frozen=True, eq=False)
class PictureTruth:
    """The faces of one picture.

    Attributes:
        id: `<event>/<stem>`, the picture's path below `images/` without `.jpg`.
        boxes: (g, 4) float64: x y w h in picture pixels; (x, y) is the top left corner.
        counted: (3, g) bool, one row a difficulty in the order of `DIFFICULTIES`: True if the
            face counts, False if it is ignored.
    """

    id: str
    boxes: NDArray[np.float64]
    counted: NDArray[np.bool_]


# Picture id -> the picture's faces, in the order of the MATLAB files.
GroundTruth = Mapping[str, PictureTruth]


def load_ground_truth(source: Path | str) -> GroundTruth:
    """Read the four MATLAB files of a folder or a zip archive, or at the URI of either.

    Raises:
        UserError: the source or a file is missing, a file is not MATLAB's or is cut short, the
            files' lists do not fit together, or a face index points outside its picture's boxes.
        OSError: a file cannot be opened.
    """
    base = _folder_of(source)
    faces_path = base + FACES_FILE
    faces = _read_lists(faces_path, "face_bbx_list")
    indices = []
    for path in (base + name for name in DIFFICULTY_FILES):
        indices.append(_read_lists(path, "gt_list"))
        if list(indices[-1]) != list(faces):
            raise UserError(
                f"{path} and {faces_path} do not list the same pictures: take all four .mat files "
                "from one copy of eval_tools.zip"
            )
    return {
        name: _picture_truth(base, name, boxes, *(lists[name] for lists in indices))
        for name, boxes in faces.items()
    }


def load_face_labels(source: Path | str, truth: GroundTruth) -> dict[str, NDArray[np.uint8]]:
    """What the faces' labels say, of a source that `load_ground_truth` has read.

    Returns:
        Picture id -> (faces, len(LABELS)) u8; empty if the files hold no labels, as those of the
        sample set, or labels of other faces.

    Raises:
        UserError: the file is gone or damaged meanwhile.
    """
    path, columns = _folder_of(source) + FACES_FILE, []
    names = [f"{label}_label_list" for label in LABELS]
    content = _read(path, names)
    for name in names:
        try:
            found = _lists(path, content, name)
        except UserError:
            return {}
        columns.append([found[id].ravel() if id in found else _NO_LABELS for id in truth])
    tables = {}
    for id, rows in zip(truth, zip(*columns, strict=True), strict=True):
        if any(len(row) != len(truth[id].boxes) for row in rows):
            return {}
        tables[id] = np.stack(rows, axis=1).astype(np.uint8)
    return tables


_NO_LABELS = np.empty(0, np.uint8)


def _folder_of(source: Path | str) -> str:
    """What comes before the files' names, up to the slash: for a store, in their places.

    Raises:
        UserError: nothing is there, or a file is missing.
    """
    folder = Path(source)
    if storage.is_uri(str(source)) or folder.is_file():
        root = str(source) if storage.is_uri(str(source)) else os.path.abspath(folder)
        try:
            sizes = storage.open_store(root).sizes
        except OSError as error:
            raise UserError(
                f"dataset.ground_truth={source}: {error.strerror or error}; give eval_tools.zip, "
                "the folder in it with the four .mat files, or a URI of either"
            ) from None
        folders = {name.rpartition("/")[0] for name in sizes if name.endswith(FACES_FILE)}
        lacking = {
            base: [name for name in GROUND_TRUTH_FILES if base + name not in sizes]
            for base in sorted(f"{one}/" if one else "" for one in folders) or [""]
        }
        base, missing = min(lacking.items(), key=lambda one: len(one[1]))
        base = storage.place_of(root, base)
    elif folder.is_dir():
        missing = [name for name in GROUND_TRUTH_FILES if not (folder / name).exists()]
        base = f"{folder}/"
    else:
        raise UserError(
            f"dataset.ground_truth={folder}: no such folder or archive; give eval_tools.zip, which "
            f"job=download gets, or the folder with {', '.join(GROUND_TRUTH_FILES)}"
        )
    if missing:
        raise UserError(
            f"ground-truth folder {source} lacks {', '.join(missing)}; eval_tools.zip holds all "
            "four files"
        )
    return base


def _read_lists(path: str, variable: str) -> dict[str, NDArray[Any]]:
    """Picture id -> its array in `variable`, event by event."""
    return _lists(path, _read(path, [variable]), variable)


def _read(path: str, variables: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Some variables of a file, and the lists of its events and files."""
    try:
        return read_variables(storage.read(path), ("event_list", "file_list", *variables))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}; all four .mat files of "
            "eval_tools.zip should be there"
        ) from None
    except MatError as error:
        raise UserError(
            f"{path} cannot be read as a MATLAB file (damaged or cut short?): {error}; "
            "fetch eval_tools.zip again"
        ) from error


def _lists(
    path: str, content: Mapping[str, NDArray[Any]], variable: str
) -> dict[str, NDArray[Any]]:
    """Picture id -> its array in `variable`, event by event.

    In the file, `file_list` and `variable` are cells, one an event, of cells, one a picture.
    """
    try:
        events = [str(cell.item()) for cell in content["event_list"].ravel()]
        names = [
            f"{event}/{cell.item()}"
            for event, files in zip(events, content["file_list"].ravel(), strict=True)
            for cell in files.ravel()
        ]
        arrays = [cell for event in content[variable].ravel() for cell in event.ravel()]
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: event_list, file_list and {variable} are not those of WIDER FACE val "
            f"({error})"
        ) from error
    # Prediction files get these names.
    odd = [name for name in names if not _NAME.fullmatch(name)]
    if odd:
        raise UserError(
            f"{path}: file_list holds {odd[0]!r}, which could lead elsewhere; fetch eval_tools.zip "
            "again"
        )
    if len(set(names)) != len(names):
        raise UserError(f"{path}: file_list names a picture twice; fetch eval_tools.zip again")
    if len(arrays) != len(names):
        raise UserError(
            f"{path}: {variable} holds {len(arrays)} pictures, file_list {len(names)}; "
            "fetch eval_tools.zip again"
        )
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "iuf" for array in arrays):
        raise UserError(f"{path}: {variable} holds something other than numbers")
    if not all(array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
        raise UserError(
            f"{path}: {variable} holds a number that is not finite; fetch eval_tools.zip again"
        )
    return dict(zip(names, arrays, strict=True))


def _picture_truth(
    base: str, name: str, boxes: NDArray[Any], *indices: NDArray[Any]
) -> PictureTruth:
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise UserError(
            f"{base}{FACES_FILE}: boxes of {name} have shape {boxes.shape}, expected (faces, 4)"
        )
    boxes = boxes.reshape(-1, 4).astype(np.float64)
    counted = np.zeros((len(DIFFICULTIES), len(boxes)), bool)
    for row, file, one_based in zip(counted, DIFFICULTY_FILES, indices, strict=True):
        # MATLAB counts from 1. Lists are uint8 or uint16: without the cast, 0 - 1 would wrap.
        index = one_based.ravel().astype(np.int64) - 1
        if index.size and not (index.min() >= 0 and index.max() < len(boxes)):
            raise UserError(
                f"{base}{file}: gt_list of {name} points outside its {len(boxes)} boxes; "
                "fetch eval_tools.zip again"
            )
        row[index] = True
    boxes.flags.writeable = False
    counted.flags.writeable = False
    return PictureTruth(name, boxes, counted)

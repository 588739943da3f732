"""Writes ground truth as the four MATLAB files that WIDER FACE publishes it in."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from cfdist.widerface.ground_truth import DIFFICULTY_FILES, FACES_FILE, PictureTruth

_HEADER_BYTES = 116  # descriptive text at the start of a MATLAB 5 file


def mat_files(truths: Sequence[PictureTruth]) -> dict[str, bytes]:
    """The files' names and contents, which `load_ground_truth` reads back.

    The lists of attributes (blur, pose, occlusion, ...) are left out: no evaluation reads them.

    Args:
        truths: the pictures, those of an event next to each other, boxes in whole pixels. A
            picture without faces has to have one box 0 0 0 0 that counts nowhere: the protocol
            leaves out a picture without any box, and with it the false positives there.
    """
    names = [truth.id.split("/") for truth in truths]

    def cells(values: Iterable[NDArray[Any]]) -> NDArray[np.object_]:
        pairs = zip((event for event, _ in names), values, strict=True)
        groups = itertools.groupby(pairs, key=lambda pair: pair[0])
        return _cell([_cell([value for _, value in group]) for _, group in groups])

    common = {
        "event_list": _cell([np.array([event]) for event in dict.fromkeys(e for e, _ in names)]),
        "face_bbx_list": cells(truth.boxes.astype(np.int32) for truth in truths),
        "file_list": cells(np.array([name]) for _, name in names),
    }
    files = {FACES_FILE: _mat(common)}
    for level, name in enumerate(DIFFICULTY_FILES):
        lists = cells(_one_based(truth.counted[level]) for truth in truths)
        files[name] = _mat(common | {"gt_list": lists})
    return files


def _one_based(counted: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """1-based indices of the true entries, as an (n, 1) column."""
    return (np.flatnonzero(counted) + 1).astype(np.uint16).reshape(-1, 1)


def _cell(items: Sequence[NDArray[Any]]) -> NDArray[np.object_]:
    """A MATLAB cell column: an (n, 1) object array."""
    cell = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        cell[row, 0] = item
    return cell


def _mat(variables: dict[str, NDArray[np.object_]]) -> bytes:
    """A MATLAB 5 file without the date and platform that scipy writes into its header."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, the sample set of cfdist".ljust(_HEADER_BYTES)
    return header + buffer.getvalue()[_HEADER_BYTES:]

"""Why boxes hit no faces: a sample of them is read in other ways, until one of these fits.

The metric takes prediction files for what they should be, x y w h score in picture pixels. Files
that hold something else score near zero and are refused by nobody, so the reason is looked for
afterwards: the reading that hits the most faces is the likely one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.metric import PROTOCOLS, box_iou
from cfdist.widerface.predictions import read_predictions_file

Floats = NDArray[np.float64]

# The lenient protocol's: what misses this misses every other.
IOU_THRESHOLD = PROTOCOLS["guide"].iou_threshold

# Pictures that are read again, at most. All readings of 60 take half a second together; those of
# fractions, for which many heights are tried, have only every third one, and take a second.
SAMPLE = 60
# Of a picture, the largest faces and the surest boxes: each face is compared with each box.
_FACES, _BOXES = 30, 60

# A reading is the likely one if it hits this many times as many faces as the boxes do as they
# stand, and hits this share of them, or this many faces and the smaller share. A wrong one hits a
# few in a thousand; the right convention hits 10 % even where colours and scale are wrong as well.
_BETTER, _FITS, _HITS, _FITS_MANY = 5.0, 0.3, 5, 0.05

# All pictures of WIDER FACE are this wide, pixels; their heights differ, so these are tried.
_WIDTH = 1024
_HEIGHTS: Floats = np.geomspace(300, 2600, 110, dtype=np.float64)
# No picture is so small that all coordinates in pixels lie below this; relative ones do, with a
# margin for boxes beyond the picture's edge.
_RELATIVE = 2.0
# Widths of network inputs that boxes may have been left in.
_INPUT_WIDTHS = (320, 416, 480, 512, 608, 640, 720, 768, 800, 896, 960, 1280, 1333, 1600, 2048)


@dataclass(frozen=True, eq=False)
class Sampled:
    """One picture of the sample.

    Attributes:
        faces: (g, 4) float64, x y w h in picture pixels.
        table: (n, 5) float64, the prediction file's columns, by falling score.
    """

    faces: Floats
    table: Floats


@dataclass(frozen=True)
class Reading:
    """A way to read boxes, and how many faces it hits.

    Attributes:
        name: In words, such as "x1 y1 x2 y2 score".
        share: Of the sample's faces, those that a box reaches `IOU_THRESHOLD` with.
        as_given: The same for the boxes as they stand.
    """

    name: str
    share: float
    as_given: float


def _corners(table: Floats) -> Floats:
    return np.concatenate((table[:, :2], table[:, 2:4] - table[:, :2], table[:, 4:]), axis=1)


def _centres(table: Floats) -> Floats:
    xy = table[:, :2] - table[:, 2:4] / 2
    return np.concatenate((xy, table[:, 2:]), axis=1)


# Order of the columns -> what makes x y w h score of a table with that order.
LAYOUTS: dict[str, Callable[[Floats], Floats]] = {
    "x y w h score": lambda table: table,
    "x1 y1 x2 y2 score": _corners,
    "center_x center_y w h score": _centres,
    "y x h w score": lambda table: table[:, [1, 0, 3, 2, 4]],
    "y1 x1 y2 x2 score": lambda table: _corners(table)[:, [1, 0, 3, 2, 4]],
    "score x y w h": lambda table: table[:, [1, 2, 3, 4, 0]],
    "score x1 y1 x2 y2": lambda table: _corners(table[:, [1, 2, 3, 4, 0]]),
}


def _resized(factor: float) -> Callable[[Floats], Floats]:
    """Boxes about the same centres with sides times `factor`, width and height exchanged."""

    def read(table: Floats) -> Floats:
        size = table[:, 3:1:-1] * factor
        xy = table[:, :2] + (table[:, 2:4] - size) / 2
        return np.concatenate((xy, size, table[:, 4:]), axis=1)

    return read


# Convention -> the boxes that it would have made of those that the other one has made. Both take
# exp of the size head, in y-x order and cells, or in x-y order and four cells.
CONVENTIONS: dict[str, Callable[[Floats], Floats]] = {
    "centerface": _resized(1 / 4),
    "centerface_pytorch": _resized(4),
}


def sample(truth: GroundTruth, files: Mapping[str, Path | None]) -> list[Sampled]:
    """Some pictures with counted faces and with predictions, spread evenly over the files.

    Files that are absent by now are left out.

    Raises:
        UserError: a file cannot be read as predictions.
    """
    known = [id for id, path in files.items() if path and truth[id].counted.any()]
    chosen = []
    for id in known[:: max(1, -(-len(known) // SAMPLE))]:
        path = files[id]
        if path is None or not path.is_file():
            continue
        boxes, scores = read_predictions_file(path)
        faces = truth[id].boxes[truth[id].counted.any(axis=0)]
        largest = np.argsort(-faces[:, 2:].prod(axis=1), kind="stable")[:_FACES]
        if len(scores):
            chosen.append(Sampled(faces[largest], np.column_stack((boxes, scores))))
    return chosen


def other_layout(pictures: Sequence[Sampled]) -> Reading | None:
    """The layout and unit of the columns that fit the faces, if the boxes as they stand do not."""
    relative = all(np.abs(one.table[:, :4]).max() <= _RELATIVE for one in pictures)
    readings = dict(_layouts(pictures, relative))
    return _best(readings, pictures) if pictures else None


def _layouts(pictures: Sequence[Sampled], relative: bool) -> Iterable[tuple[str, float]]:
    """Reading -> its share of the faces."""
    for name, layout in LAYOUTS.items():
        if relative:
            share = _share(pictures[::3], layout, _HEIGHTS)
            yield f"{name}, in fractions of the picture's sides (0..1)", share
        else:
            yield name, _share(pictures, layout)
    for width in () if relative else _INPUT_WIDTHS:
        for name in ("x y w h score", "x1 y1 x2 y2 score"):
            share = _share(pictures, _scaled(LAYOUTS[name], _WIDTH / width))
            yield f"{name}, in pixels of an input of {width} columns", share


def _scaled(layout: Callable[[Floats], Floats], factor: float) -> Callable[[Floats], Floats]:
    return lambda table: layout(table) * [factor, factor, factor, factor, 1]


def other_convention(pictures: Sequence[Sampled], used: str) -> Reading | None:
    """The model convention whose boxes fit the faces, if those of the `used` one do not."""
    if used not in CONVENTIONS:
        return None
    others = {name: read for name, read in CONVENTIONS.items() if name != used}
    readings = {name: _share(pictures, read) for name, read in others.items()}
    return _best(readings, pictures) if pictures else None


def _best(readings: Mapping[str, float], pictures: Sequence[Sampled]) -> Reading | None:
    """The first reading with the highest share, if that says something."""
    name = max(readings, key=lambda name: readings[name])
    share, as_given = readings[name], _share(pictures, LAYOUTS["x y w h score"])
    faces = sum(len(picture.faces) for picture in pictures)
    is_enough = share >= _FITS or (share >= _FITS_MANY and share * faces >= _HITS)
    return Reading(name, share, as_given) if is_enough and share >= _BETTER * as_given else None


def _share(
    pictures: Sequence[Sampled], read: Callable[[Floats], Floats], heights: Floats | None = None
) -> float:
    """The share of the faces that a box hits, if the tables are read by `read`.

    Args:
        pictures: The sample.
        read: From a table to its columns x y w h score.
        heights: Boxes are fractions of the picture's sides; its height is one of these, pixels.
    """
    hit = faces = 0
    for picture in pictures:
        table = read(picture.table)
        boxes = table[np.argsort(-table[:, 4], kind="stable")[:_BOXES], :4]
        scales = [np.ones(4)]
        if heights is not None:
            scales = [np.array([_WIDTH, height] * 2) for height in heights]
        hit += max(_hits(boxes * scale, picture.faces) for scale in scales)
        faces += len(picture.faces)
    return hit / max(faces, 1)


def _hits(boxes: Floats, faces: Floats) -> int:
    return int((box_iou(boxes, faces).max(axis=0) >= IOU_THRESHOLD).sum())

"""From the network's head maps to boxes in the picture: pure functions on arrays.

Coordinates: a `cell` is a place of the output maps, (row, column), one for `STRIDE` input pixels
each way; `input` and `picture` pixels are those of `cfdist.preprocess`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.detections import Detections
from cfdist.extensions import load_object
from cfdist.model import ModelSpec
from cfdist.preprocess import PLAIN, View, letterbox_affine, stretch_affine

Floats = NDArray[np.float32]
Points = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # see CONVENTIONS

STRIDE = 4  # input pixels a cell, both published networks
# What a graph that picks its own peaks calls its outputs, see cfdist.network.export.
PEAK_OUTPUTS = ("scores", "cells", "values")
PEAK_VALUES = 14  # what the heads say at a peak: size 2, offset 2, landmarks 10
TOP_K = 200  # peaks a picture, the CenterFace evaluation script's own number

# The other eye and the other corner of the mouth.
_MIRRORED_LANDMARKS = (1, 0, 2, 4, 3)

# Pairs of boxes that the suppression compares at once, which bounds its memory: about 50 MB.
_PAIRS_AT_ONCE = 1 << 20

_NEIGHBOURHOOD = np.ones((3, 3), np.uint8)


class HeadMaps(NamedTuple):
    """What the network puts out for n pictures, float32, padding already dropped.

    Attributes:
        hm: (n, 1, h, w) face-centre heat map, 0 to 1 (the sigmoid is inside the networks).
        wh: (n, 2, h, w) box size; the model's convention says which is which and in what scale.
        offset: (n, 2, h, w) the centre's place in its cell.
        landmarks: (n, 10, h, w) five points.
    """

    hm: Floats
    wh: Floats
    offset: Floats
    landmarks: Floats

    CHANNELS = (1, 2, 2, 10)  # type: ignore[misc]

    def select(self, chosen: NDArray[np.bool_]) -> HeadMaps:
        """The maps of some of the pictures, given an (n,) mask."""
        return HeadMaps(*(maps[chosen] for maps in self))


class Peaks(NamedTuple):
    """The top K cells of the heat maps of n pictures and what the other heads say there.

    Rows are by falling score; rows past a picture's last peak have score 0.

    Attributes:
        score: (n, K) float32.
        cell: (n, K) int32, row * w + column in the output maps.
        values: (n, K, 14) float32: wh (2), offset (2), landmarks (10).
    """

    score: Floats
    cell: NDArray[np.int32]
    values: Floats


# What a model gives: head maps, or the peaks if its graph picks them.
Outputs = HeadMaps | Peaks


def to_peaks(outputs: Outputs, spec: ModelSpec) -> Peaks:
    """The peaks of a model's outputs, its own or those of its head maps, as the spec picks them."""
    if isinstance(outputs, HeadMaps):
        return select_peaks(outputs, spec.top_k, spec.score, spec.peaks == "maxima")
    return outputs._replace(score=np.where(outputs.score > spec.score, outputs.score, 0))


def join_peaks(batches: Sequence[Peaks]) -> Peaks:
    """The peaks of several batches as those of one; those with fewer rows get empty ones."""
    rows = max((one.score.shape[1] for one in batches), default=0)
    joined = _no_peaks(sum(len(one.score) for one in batches), rows)
    start = 0
    for one in batches:
        count, used = one.score.shape
        place = np.s_[start : start + count, :used]
        joined.score[place], joined.cell[place], joined.values[place] = one
        start += count
    return joined


def _no_peaks(pictures: int, k: int) -> Peaks:
    values = np.zeros((pictures, k, PEAK_VALUES), np.float32)
    return Peaks(np.zeros((pictures, k), np.float32), np.zeros((pictures, k), np.int32), values)


def select_peaks(
    heads: HeadMaps, k: int | None = TOP_K, above: float = 0.0, only_maxima: bool = True
) -> Peaks:
    """The K highest peaks of each heat map.

    A cell is a peak where it is above a score and equals the maximum of its 3x3 neighbourhood.
    Equal scores come in the order of their cells.

    Args:
        heads: Of n pictures.
        k: `None`: all peaks; K is the number in the picture that has most.
        above: 0 or more.
        only_maxima: `False`: every cell above the score is a peak.

    Returns:
        `Peaks` of n pictures with K rows each.
    """
    cells = [_top_cells(hm, k, above, only_maxima) for hm in heads.hm[:, 0]]
    peaks = _no_peaks(len(cells), max(map(len, cells), default=0) if k is None else k)
    for i, (hm, found) in enumerate(zip(heads.hm[:, 0], cells, strict=True)):
        count = len(found)
        if not count:
            continue
        peaks.score[i, :count] = hm.reshape(-1)[found]
        peaks.cell[i, :count] = found
        others = [maps[i].reshape(maps.shape[1], -1)[:, found] for maps in heads[1:]]
        peaks.values[i, :count] = np.concatenate(others).T
    return peaks


def graph_peaks(score: Floats, cell: NDArray[np.integer], values: Floats) -> Peaks:
    """What a graph that picks its own peaks gave, as `select_peaks` would have given it.

    Runtimes may return equal scores in any order, and anything in the rows of score 0. A NaN score
    stays, in the last rows, for `finite_pictures` to find.

    Args:
        score: (n, K).
        cell: (n, K).
        values: (n, K, 14).
    """
    order = np.lexsort((cell, -score), axis=-1)
    score = np.take_along_axis(score, order, axis=1)
    cell = np.take_along_axis(cell, order, axis=1).astype(np.int32)
    values = np.take_along_axis(values, order[..., None], axis=1)
    none = score <= 0
    return Peaks(
        np.where(none, np.float32(0), score),
        np.where(none, np.int32(0), cell),
        np.where(none[..., None], np.float32(0), values),
    )


def finite_pictures(outputs: Outputs) -> NDArray[np.bool_]:
    """Which pictures' outputs are all finite.

    Ask before `select_peaks`, which takes a NaN of the heat map for no peak.

    Args:
        outputs: Of n pictures. The rows of `Peaks` without a peak, those with a score of 0 or less,
            may hold anything; a NaN score is not finite.

    Returns:
        (n,) False for the pictures with a NaN or an infinity.
    """
    if isinstance(outputs, Peaks):
        is_finite = np.isfinite(outputs.score) & np.isfinite(outputs.values).all(axis=2)
        return np.asarray((is_finite | (outputs.score <= 0)).all(axis=1))
    finite = np.ones(len(outputs.hm), bool)
    for maps in outputs:
        # A NaN or an infinity makes the float32 sum one, and einsum reads the maps twice as fast
        # as isfinite. Large finite values can do so too, so the values themselves decide then.
        sums = np.einsum("nchw->n", maps)
        for i in np.flatnonzero(~np.isfinite(sums) & finite):
            finite[i] = np.isfinite(maps[i]).all()
    return finite


def _top_cells(hm: Floats, k: int | None, above: float, only_maxima: bool) -> NDArray[np.intp]:
    """Flat indices of the k highest peaks of one (h, w) map, by falling score, then by index."""
    is_peak = hm > np.float32(above)
    if only_maxima:
        is_peak &= hm == cv2.dilate(hm, _NEIGHBOURHOOD)
    cells = np.flatnonzero(is_peak)
    scores = hm.reshape(-1)[cells]
    if k is not None and len(cells) > k:
        last = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = scores > last
        # Of those equal to the k-th score, the first ones.
        level = np.flatnonzero(scores == last)[: k - np.count_nonzero(chosen)]
        chosen[level] = True
        cells, scores = cells[chosen], scores[chosen]
    return cells[np.argsort(-scores, kind="stable")]


def _centerface_pytorch_points(cells: Floats, values: Floats) -> Points:
    """Heads in x-y order, no half cell, sizes 4 exp(wh) cells, landmarks relative to the centre.

    The convention of the PyTorch training code whose checkpoint the Ascend guide converts.
    """
    centre = cells + values[..., 2:4]
    half = np.exp(values[..., 0:2]) * np.float32(4) / 2
    landmarks = values[..., 4:].reshape(*cells.shape[:2], 5, 2)
    return centre - half, centre + half, centre[..., None, :] + landmarks


def _centerface_points(cells: Floats, values: Floats) -> Points:
    """Heads in y-x order, half a cell added, sizes exp(scale) cells, landmarks in box units.

    The convention of the original authors' ONNX.
    """
    centre = cells + values[..., 3:1:-1] + np.float32(0.5)
    size = np.exp(values[..., 1::-1])
    start = centre - size / 2
    landmarks = values[..., 4:].reshape(*cells.shape[:2], 5, 2)[..., ::-1]
    return start, start + size, landmarks * size[..., None, :] + start[..., None, :]


# What a model's values at its peaks mean. Each function takes the peaks' cells, (n, K, 2) float32
# x y, and their values, (n, K, 14), and returns x y in cells: the boxes' top left and bottom right
# corners, (n, K, 2) each, and the landmarks, (n, K, 5, 2).
CONVENTIONS: dict[str, Callable[[Floats, Floats], Points]] = {
    "centerface": _centerface_points,
    "centerface_pytorch": _centerface_pytorch_points,
}


def decode_boxes(
    peaks: Peaks,
    convention: str,
    picture_sizes: NDArray[np.integer],
    input_size: tuple[int, int],
    is_stretched: bool = False,
) -> tuple[Floats, Floats]:
    """Peaks to boxes and landmarks in picture pixels, a whole batch at once.

        >>> values = np.zeros((1, 1, 14), np.float32)
        >>> peak = Peaks(np.ones((1, 1)), np.array([[5 * 8 + 3]]), values)  # row 5, column 3
        >>> boxes, _ = decode_boxes(peak, "centerface_pytorch", np.array([[64, 64]]), (32, 32))
        >>> boxes.tolist()
        [[[8.0, 24.0, 40.0, 56.0]]]

    Args:
        peaks: n pictures' peaks.
        convention: A key of `CONVENTIONS`, or such a function of others, "module:name".
        picture_sizes: (n, 2) width and height of the pictures, pixels.
        input_size: Width and height of the network's input, pixels.
        is_stretched: Each picture fills the input; else it was letterboxed.

    Returns:
        Boxes, (n, K, 4) x1 y1 x2 y2, and landmarks, (n, K, 5, 2) x y, in picture pixels, float32;
        not clipped to the picture.
    """
    rows, columns = np.divmod(peaks.cell, input_size[0] // STRIDE)
    cells = np.stack([columns, rows], axis=-1).astype(np.float32)
    points = CONVENTIONS.get(convention) or load_object(convention, "model.convention")
    start, end, landmarks = points(cells, peaks.values)
    affine_of = stretch_affine if is_stretched else letterbox_affine
    affines = np.array([affine_of(int(w), int(h), *input_size) for w, h in picture_sizes])
    affines = affines.reshape(-1, 2, 3)  # keeps its shape for no pictures
    # The affine is a scale and a shift of each axis.
    scale = affines[:, None, None, (0, 1), (0, 1)] / STRIDE
    shift = affines[:, None, None, :, 2] / STRIDE
    corners = np.stack([start, end], axis=-2)
    boxes, landmarks = (
        ((points - shift) / scale).astype(np.float32) for points in (corners, landmarks)
    )
    return boxes.reshape(*peaks.score.shape, 4), landmarks


def nms(boxes: Floats, scores: Floats, iou_threshold: float) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression of one picture's boxes.

    The CenterFace authors' own: a box goes if its overlap with a kept, earlier box is at least
    the threshold; areas count pixels, (x2 - x1 + 1) * (y2 - y1 + 1).

    Args:
        boxes: (k, 4) x1 y1 x2 y2, by falling score.
        scores: (k,), falling; rows with score 0 are no boxes.
        iou_threshold: 0 to 1.

    Returns:
        (k,) True where the box stays.
    """
    boxes = boxes.astype(np.float32)
    keep = scores > 0
    left = np.flatnonzero(keep)
    while len(left):
        # The first of those left, and what they suppress of all that are left.
        count = min(len(left), max(1, _PAIRS_AT_ONCE // len(left)))
        suppresses = _overlap(boxes[left[:count]], boxes[left], iou_threshold)
        suppresses &= ~np.tri(count, len(left), dtype=bool)  # only later boxes go
        # Boxes that overlap nothing later need no pass of the loop.
        for i in np.flatnonzero(suppresses.any(axis=1)):
            if keep[left[i]]:
                keep[left[suppresses[i]]] = False
        left = left[count:][keep[left[count:]]]
    return keep


def _overlap(boxes: Floats, others: Floats, iou_threshold: float) -> NDArray[np.bool_]:
    """(k, m): which of k boxes overlap which of m others by at least the threshold."""
    x1, y1, x2, y2 = boxes.T[:, :, None]
    left, top, right, bottom = others.T
    width = np.minimum(x2, right) - np.maximum(x1, left) + 1
    height = np.minimum(y2, bottom) - np.maximum(y1, top) + 1
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (right - left + 1) * (bottom - top + 1)
    return np.asarray(overlap >= np.float32(iou_threshold) * (areas - overlap))


def vote(
    boxes: Floats, scores: Floats, landmarks: Floats, iou_threshold: float
) -> tuple[Floats, Floats, Floats]:
    """Box voting: of boxes that overlap, the mean by their scores, with the highest score.

    The first box and all that overlap it by at least the threshold (as `nms` counts it) become
    one; then the first of those left.

    Args:
        boxes: (k, 4) x1 y1 x2 y2, by falling score.
        scores: (k,), falling, above 0.
        landmarks: (k, 5, 2), which are averaged like the boxes.
        iou_threshold: 0 to 1.

    Returns:
        The same three of m voted boxes, by falling score, float32.
    """
    values = np.concatenate((boxes, landmarks.reshape(-1, 10)), axis=1).astype(np.float64)
    left = np.arange(len(boxes))
    found, first = [np.empty((0, 14))], []
    while len(left):
        together = _overlap(boxes[left[:1]], boxes[left], iou_threshold)[0]
        together[0] = True  # a box without an area overlaps nothing
        weights = scores[left[together]].astype(np.float64)
        found.append(weights[None] @ values[left[together]] / weights.sum())
        first.append(left[0])
        left = left[~together]
    voted = np.concatenate(found).astype(np.float32)
    return voted[:, :4], scores[first], voted[:, 4:].reshape(-1, 5, 2)


def merge_views(found: Sequence[Detections], spec: ModelSpec) -> list[Detections]:
    """What was found in the views of each picture as one record; the order is that of the first.

    A picture that failed in one view has failed.
    """
    if len(spec.views) == 1:
        return list(found)
    pictures: dict[str, list[Detections]] = {}
    for one in found:
        pictures.setdefault(one.id, []).append(one)
    return [_merged(views, spec) for views in pictures.values()]


def _merged(views: Sequence[Detections], spec: ModelSpec) -> Detections:
    failed = next((one for one in views if one.error is not None), None)
    if failed is not None:
        return failed
    boxes, scores, landmarks = (
        np.concatenate([getattr(one, name) for one in views])
        for name in ("boxes", "scores", "landmarks")
    )
    order = np.argsort(-scores, kind="stable")
    boxes, scores, landmarks = boxes[order], scores[order], landmarks[order]
    assert spec.nms is not None  # see cfdist.execution.conventions
    if spec.merge == "vote":
        boxes, scores, landmarks = vote(boxes, scores, landmarks, spec.nms)
    else:
        keep = nms(boxes, scores, spec.nms)
        boxes, scores, landmarks = boxes[keep], scores[keep], landmarks[keep]
    return replace(views[0], boxes=boxes, scores=scores, landmarks=landmarks)


def _mirrored_back(boxes: Floats, landmarks: Floats, width: int) -> tuple[Floats, Floats]:
    """Boxes and landmarks of a mirrored picture in the picture; left and right change names."""
    boxes = boxes[:, (2, 1, 0, 3)]
    boxes[:, ::2] = width - boxes[:, ::2]
    landmarks = landmarks[:, _MIRRORED_LANDMARKS]
    landmarks[..., 0] = width - landmarks[..., 0]
    return boxes, landmarks


def decode_detections(
    keys: Sequence[str],
    sizes: NDArray[np.int32],
    peaks: Peaks,
    spec: ModelSpec,
    view: View = PLAIN,
) -> list[Detections]:
    """Peaks as detections in picture pixels, suppression included.

    Args:
        keys: n keys of work items; they become the records' ids.
        sizes: (n, 2) width and height of the pictures, pixels.
        peaks: Of the n pictures.
        spec: The convention, the input's size and the suppression.
        view: How the pictures were shown.

    Returns:
        n records. A picture with a box that is not finite has failed. The boxes of pictures at
        their own size are clipped to them, as the authors' test does.
    """
    is_stretched = spec.size == "own"
    # Only the rows up to the last peak of any picture.
    used = int(np.count_nonzero(peaks.score > 0, axis=1).max(initial=0))
    peaks = Peaks(peaks.score[:, :used], peaks.cell[:, :used], peaks.values[:, :used])
    with np.errstate(over="ignore", invalid="ignore"):  # such pictures fail below
        found = decode_boxes(peaks, spec.convention, sizes, (spec.width, spec.height), is_stretched)
    detections = []
    for key, (width, height), scores, boxes, landmarks in zip(
        keys, sizes.tolist(), peaks.score, *found, strict=True
    ):
        keep = scores > 0
        if not keep.any():
            detections.append(Detections(key, width=width, height=height))
            continue
        if not (np.isfinite(boxes[keep]).all() and np.isfinite(landmarks[keep]).all()):
            detections.append(Detections(key, error="the model's outputs make infinite boxes"))
            continue
        if view.is_mirrored:
            boxes, landmarks = _mirrored_back(boxes, landmarks, width)
        if is_stretched:
            boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        if spec.nms is not None:
            keep = nms(boxes, scores, spec.nms)
        detections.append(
            Detections(key, boxes[keep], scores[keep], landmarks[keep], width, height)
        )
    return detections

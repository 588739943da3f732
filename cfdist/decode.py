"""From the network's head maps to boxes in the picture: pure functions on arrays.

Coordinates: a `cell` is a place of the output maps, (row, column), one for `STRIDE` input pixels
each way; `input` and `picture` pixels are those of `cfdist.preprocess`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.detections import Detections
from cfdist.model import ModelSpec
from cfdist.preprocess import letterbox_affine

STRIDE = 4  # input pixels a cell, both published networks
# What a graph that picks its own peaks calls its outputs, see cfdist.network.export.
PEAK_OUTPUTS = ("scores", "cells", "values")
PEAK_VALUES = 14  # what the heads say at a peak: size 2, offset 2, landmarks 10
TOP_K = 200  # peaks a picture, the CenterFace evaluation script's own number

_NEIGHBOURHOOD = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class HeadMaps:
    """What the network puts out for n pictures, float32, padding already dropped.

    Attributes:
        hm: (n, 1, h, w) face-centre heat map, 0 to 1 (the sigmoid is inside the networks).
        wh: (n, 2, h, w) box size; which is which and in what scale is the model's convention.
        offset: (n, 2, h, w) the centre's place in its cell.
        landmarks: (n, 10, h, w) five points.
    """

    hm: NDArray[np.float32]
    wh: NDArray[np.float32]
    offset: NDArray[np.float32]
    landmarks: NDArray[np.float32]

    CHANNELS = (1, 2, 2, 10)

    def select(self, chosen: NDArray[np.bool_]) -> HeadMaps:
        """The maps of some of the pictures, given an (n,) mask."""
        return HeadMaps(
            self.hm[chosen], self.wh[chosen], self.offset[chosen], self.landmarks[chosen]
        )


@dataclass(frozen=True)
class Peaks:
    """The top K heat map maxima of n pictures and what the other heads say there.

    Rows are by falling score; rows past a picture's last peak have score 0.

    Attributes:
        score: (n, K) float32.
        cell: (n, K) int32, row * w + column in the output maps.
        values: (n, K, 14) float32: wh (2), offset (2), landmarks (10).
        map_width: w, columns of the output maps.
    """

    score: NDArray[np.float32]
    cell: NDArray[np.int32]
    values: NDArray[np.float32]
    map_width: int


# What a model gives: head maps, or the peaks if its graph picks them.
Outputs = HeadMaps | Peaks


def to_peaks(outputs: Outputs, k: int = TOP_K) -> Peaks:
    """The K highest peaks of a model's outputs: its own, or those of its head maps."""
    return outputs if isinstance(outputs, Peaks) else select_peaks(outputs, k)


def join_peaks(batches: Sequence[Peaks], k: int) -> Peaks:
    """The peaks of several batches as those of one.

    Args:
        batches: Peaks with K rows a picture, maps of one width.
        k: K, for the shape of no batch at all.
    """
    if not batches:
        values = np.zeros((0, k, PEAK_VALUES), np.float32)
        return Peaks(np.zeros((0, k), np.float32), np.zeros((0, k), np.int32), values, 1)
    return Peaks(
        np.concatenate([peaks.score for peaks in batches]),
        np.concatenate([peaks.cell for peaks in batches]),
        np.concatenate([peaks.values for peaks in batches]),
        batches[0].map_width,
    )


def select_peaks(heads: HeadMaps, k: int = TOP_K) -> Peaks:
    """The K highest local maxima of each heat map.

    A cell is a peak where it equals the maximum of its 3x3 neighbourhood and is above 0. Equal
    scores come in the order of their cells.

    Returns:
        `Peaks` of n pictures with K rows each.
    """
    pictures, _, _, width = heads.hm.shape
    score = np.zeros((pictures, k), np.float32)
    cell = np.zeros((pictures, k), np.int32)
    values = np.zeros((pictures, k, PEAK_VALUES), np.float32)
    for i in range(pictures):
        found = _top_peaks(heads.hm[i, 0], k)
        count = len(found)
        score[i, :count] = heads.hm[i, 0].reshape(-1)[found]
        cell[i, :count] = found
        values[i, :count, 0:2] = heads.wh[i].reshape(2, -1)[:, found].T
        values[i, :count, 2:4] = heads.offset[i].reshape(2, -1)[:, found].T
        values[i, :count, 4:] = heads.landmarks[i].reshape(10, -1)[:, found].T
    return Peaks(score, cell, values, width)


def graph_peaks(
    score: NDArray[np.float32], cell: NDArray[np.integer], values: NDArray[np.float32], width: int
) -> Peaks:
    """What a graph that picks its own peaks gave, as `select_peaks` would have given it.

    Runtimes may return equal scores in any order, and anything in the rows of score 0. A NaN score
    stays, in the last rows, for `finite_pictures` to find.

    Args:
        score: (n, K).
        cell: (n, K).
        values: (n, K, 14).
        width: Columns of the output maps.
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
        width,
    )


def finite_pictures(outputs: Outputs) -> NDArray[np.bool_]:
    """Which pictures' outputs are all finite.

    Ask before `select_peaks`, which takes a NaN of the heat map for no peak.

    Args:
        outputs: Of n pictures. The rows of `Peaks` that no peak is in, those with a score of 0 or
            less, may hold anything; a NaN score is not finite.

    Returns:
        (n,) False for the pictures with a NaN or an infinity.
    """
    if isinstance(outputs, Peaks):
        is_finite = np.isfinite(outputs.score) & np.isfinite(outputs.values).all(axis=2)
        return np.asarray((is_finite | (outputs.score <= 0)).all(axis=1))
    finite = np.ones(len(outputs.hm), bool)
    for maps in (outputs.hm, outputs.wh, outputs.offset, outputs.landmarks):
        # A NaN or an infinity makes the float32 sum one, and einsum reads the maps twice as fast
        # as isfinite. Large finite values do so too, so that only the values themselves decide.
        sums = np.einsum("nchw->n", maps)
        for i in np.flatnonzero(~np.isfinite(sums) & finite):
            finite[i] = np.isfinite(maps[i]).all()
    return finite


def _top_peaks(hm: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Flat indices of the k highest peaks of one (h, w) map, by falling score, then by index."""
    is_peak = (hm == cv2.dilate(hm, _NEIGHBOURHOOD)) & (hm > 0)
    cells = np.flatnonzero(is_peak)
    scores = hm.reshape(-1)[cells]
    if len(cells) > k:
        last = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = scores > last
        # Of those equal to the k-th score, the first ones.
        level = np.flatnonzero(scores == last)[: k - np.count_nonzero(above)]
        above[level] = True
        cells, scores = cells[above], scores[above]
    return cells[np.argsort(-scores, kind="stable")]


@dataclass(frozen=True)
class DecodedBoxes:
    """Boxes of n pictures in cells or pixels; rows as in `Peaks`.

    Attributes:
        boxes: (n, K, 4) float32, x1 y1 x2 y2.
        landmarks: (n, K, 5, 2) float32, x y.
    """

    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]


def _decode_centerface_pytorch(peaks: Peaks) -> DecodedBoxes:
    """Heads in x-y order, no half cell, sizes 4 exp(wh) cells, landmarks relative to the centre.

    The convention of the PyTorch training code whose checkpoint the Ascend guide converts.
    """
    x = (peaks.cell % peaks.map_width).astype(np.float32) + peaks.values[..., 2]
    y = (peaks.cell // peaks.map_width).astype(np.float32) + peaks.values[..., 3]
    size = np.exp(peaks.values[..., 0:2]) * np.float32(4)
    half_w, half_h = size[..., 0] / 2, size[..., 1] / 2
    boxes = np.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)
    centre = np.stack([x, y], axis=-1)[..., None, :]
    landmarks = centre + peaks.values[..., 4:].reshape(*x.shape, 5, 2)
    return DecodedBoxes(boxes.astype(np.float32), landmarks.astype(np.float32))


def _decode_centerface(peaks: Peaks) -> DecodedBoxes:
    """Heads in y-x order, half a cell added, sizes exp(scale) cells, landmarks in box units.

    The convention of the original authors' ONNX.
    """
    half = np.float32(0.5)
    y = (peaks.cell // peaks.map_width).astype(np.float32) + peaks.values[..., 2] + half
    x = (peaks.cell % peaks.map_width).astype(np.float32) + peaks.values[..., 3] + half
    size = np.exp(peaks.values[..., 0:2])
    height, width = size[..., 0], size[..., 1]
    y1, x1 = y - height / 2, x - width / 2
    boxes = np.stack([x1, y1, x1 + width, y1 + height], axis=-1)
    relative = peaks.values[..., 4:].reshape(*x.shape, 5, 2)
    landmarks = np.stack(
        [
            relative[..., 1] * width[..., None] + x1[..., None],
            relative[..., 0] * height[..., None] + y1[..., None],
        ],
        axis=-1,
    )
    return DecodedBoxes(boxes.astype(np.float32), landmarks.astype(np.float32))


CONVENTIONS: dict[str, Callable[[Peaks], DecodedBoxes]] = {
    "centerface": _decode_centerface,
    "centerface_pytorch": _decode_centerface_pytorch,
}


def decode_boxes(
    peaks: Peaks,
    convention: str,
    picture_sizes: NDArray[np.integer],
    input_size: tuple[int, int],
) -> DecodedBoxes:
    """Peaks to boxes and landmarks in picture pixels, a whole batch at once.

    Args:
        peaks: n pictures' peaks.
        convention: A key of `CONVENTIONS`.
        picture_sizes: (n, 2) width and height of the pictures, pixels.
        input_size: Width and height of the network's input, pixels.

    Returns:
        Boxes and landmarks in picture pixels, float32; not clipped to the picture.
    """
    in_cells = CONVENTIONS[convention](peaks)
    affines = np.array([letterbox_affine(int(w), int(h), *input_size) for w, h in picture_sizes])
    affines = affines.reshape(-1, 2, 3)  # keeps its shape for no pictures
    scale = affines[:, 0, 0, None, None] / STRIDE
    shift = affines[:, None, :, 2] / STRIDE

    def to_picture(points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, m, 2) x y in cells to picture pixels: the affine is a scale and a shift."""
        return ((points - shift) / scale).astype(np.float32)

    n, k = peaks.score.shape
    return DecodedBoxes(
        to_picture(in_cells.boxes.reshape(n, k * 2, 2)).reshape(n, k, 4),
        to_picture(in_cells.landmarks.reshape(n, k * 5, 2)).reshape(n, k, 5, 2),
    )


def nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], iou_threshold: float
) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression of one picture's boxes.

    The CenterFace authors' own: a box goes where its overlap with a kept, earlier box is at least
    the threshold; areas count pixels, (x2 - x1 + 1) * (y2 - y1 + 1).

    Args:
        boxes: (k, 4) x1 y1 x2 y2, by falling score.
        scores: (k,), falling; rows with score 0 are no boxes.
        iou_threshold: 0 to 1.

    Returns:
        (k,) True where the box stays.
    """
    x1, y1, x2, y2 = boxes.astype(np.float32).T
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    width = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1) + 1
    height = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1) + 1
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    suppresses = overlap >= np.float32(iou_threshold) * (area[:, None] + area - overlap)
    suppresses &= np.tri(len(boxes), k=-1, dtype=bool).T  # only later boxes go
    keep = scores > 0
    # Boxes that overlap nothing later need no turn of the loop.
    for i in np.flatnonzero(suppresses.any(axis=1)):
        if keep[i]:
            keep[suppresses[i]] = False
    return keep


def decode_detections(
    keys: Sequence[str], sizes: NDArray[np.int32], peaks: Peaks, spec: ModelSpec
) -> list[Detections]:
    """Peaks as detections in picture pixels, suppression included.

    Args:
        keys: n keys of work items; they become the records' ids.
        sizes: (n, 2) width and height of the pictures, pixels.
        peaks: Of the n pictures.
        spec: The convention, the input's size and the suppression.

    Returns:
        n records. A picture with a box that is not finite has failed.
    """
    peaks = _without_empty_columns(peaks)
    with np.errstate(over="ignore", invalid="ignore"):  # such pictures fail below
        decoded = decode_boxes(peaks, spec.convention, sizes, (spec.width, spec.height))
    detections = []
    for i, key in enumerate(keys):
        scores = peaks.score[i]
        keep = scores > 0
        width, height = map(int, sizes[i])
        boxes, landmarks = decoded.boxes[i], decoded.landmarks[i]
        if not (np.isfinite(boxes[keep]).all() and np.isfinite(landmarks[keep]).all()):
            detections.append(Detections(key, error="the model's outputs make infinite boxes"))
            continue
        if spec.nms is not None and keep.any():
            keep = nms(boxes, scores, spec.nms)
        detections.append(
            Detections(key, boxes[keep], scores[keep], landmarks[keep], width, height)
        )
    return detections


def _without_empty_columns(peaks: Peaks) -> Peaks:
    """The peaks up to the last one of any picture."""
    count = int(np.count_nonzero(peaks.score > 0, axis=1).max(initial=0))
    return Peaks(
        peaks.score[:, :count], peaks.cell[:, :count], peaks.values[:, :count], peaks.map_width
    )

"""How far the boxes of two runs are apart: 1 - IoU of each box and the one that it overlaps most.

    python benchmarks/box_distance.py FLOAT32/predictions.parquet INT8/predictions.parquet

The mean over the first run's boxes with a score above 0.1 that a box of the second, whatever its
score, overlaps by more than half; how many they are, and of how many.
"""

from __future__ import annotations

import sys

import common  # noqa: F401  (it finds the project)
import numpy as np
import pyarrow.parquet as pq

from cfdist.widerface.metric import box_iou


def boxes_of(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Picture -> its boxes, (k, 4) x y w h as the metric has them, and scores, (k,)."""
    table = pq.read_table(path, columns=["id", "boxes", "scores"]).to_pydict()
    found = {}
    for id, flat, scores in zip(*table.values(), strict=True):
        boxes = np.array(flat, np.float64).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        found[id] = boxes, np.array(scores)
    return found


def main() -> None:
    """Print the mean and the numbers of boxes."""
    first, second = (boxes_of(path) for path in sys.argv[1:])
    overlaps = [np.zeros(0)]
    for id, (boxes, scores) in first.items():
        if len(strong := boxes[scores > 0.1]):
            overlaps.append(box_iou(strong, second[id][0]).max(axis=1, initial=0))
    overlap = np.concatenate(overlaps)
    near = overlap[overlap > 0.5]
    print(f"{1 - near.mean():.4f} over {len(near)} of {len(overlap)} boxes")


if __name__ == "__main__":
    main()

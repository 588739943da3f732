"""What became of each box, as columns of `predictions.parquet`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS, Matched

if TYPE_CHECKING:
    import pyarrow as pa

# What the columns say for each outcome of the metric: `NOT_COUNTED`, `FALSE_POSITIVE`, ...
OUTCOMES = ("ignored", "FP", "TP")


def outcome_column(protocol: str, difficulty: str) -> str:
    """The name of the column that holds the outcomes by a protocol at a difficulty."""
    return f"{protocol}_{difficulty}"


def with_matches(table: pa.Table, matched: Matched) -> pa.Table:
    """Detections (`cfdist.detections.to_arrow`) with what the metric made of each box.

    Further columns, each a list with one value a box, null for a picture that was not scored:
    written_scores (double, rounded as in the prediction files: the score that counts), face (int32,
    the row in the ground truth of the face that the box overlaps most, null if it overlaps none),
    iou (double, with that face, of the box as written), and `outcome_column` for each protocol and
    difficulty (string, one of `OUTCOMES`).
    """
    import pyarrow as pa

    places = [matched.places.get(id) for id in table.column("id").to_pylist()]
    sizes = [0 if place is None else place[1] - place[0] for place in places]
    offsets = pa.array(
        np.cumsum([0, *sizes], dtype=np.int32),
        mask=np.array([*(place is None for place in places), False]),
    )
    boxes = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(*place) for place in places if place is not None)]
    )
    words = pa.array(OUTCOMES, pa.string())

    def add(name: str, values: NDArray[np.generic] | pa.Array) -> None:
        nonlocal table
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, pa.array(values)))

    face = matched.best.face[boxes]
    add("written_scores", matched.scores[boxes])
    add("face", pa.array(face, mask=face < 0))
    add("iou", matched.best.iou[boxes])
    for protocol, rows in zip(PROTOCOLS, matched.outcomes, strict=True):
        for difficulty, row in zip(DIFFICULTIES, rows, strict=True):
            add(outcome_column(protocol, difficulty), words.take(pa.array(row[boxes])))
    return table

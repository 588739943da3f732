"""What was found in one picture: the record that devices, reducer and files share."""

from __future__ import annotations

import importlib.abc
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Detections:
    """Faces found in one picture, in picture pixels, by falling score.

    Attributes:
        id: "<event>/<stem>" of the picture.
        boxes: (k, 4) float32, x1 y1 x2 y2.
        scores: (k,) float32, 0 to 1.
        landmarks: (k, 5, 2) float32, x y of the eyes, the nose and the mouth's corners.
        width: The picture's width, pixels; 0 if it could not be read.
        height: The picture's height, likewise.
        error: Why the picture failed; `None` if it did not.
        damage: What is wrong with the picture's file, whether or not the picture failed for that.
        is_doubtful: The device may be the reason of the error: another one should try.

    Without arrays, there are no faces:

        >>> failed = Detections("0--Parade/a", error="empty file (0 bytes)")
        >>> failed.boxes.shape, failed.landmarks.shape
        ((0, 4), (0, 5, 2))
    """

    id: str
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    landmarks: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 5, 2), np.float32))
    width: int = 0
    height: int = 0
    error: str | None = None
    damage: str | None = None
    is_doubtful: bool = False


def to_arrow(detections: Sequence[Detections]) -> pa.Table:
    """Detections as an Arrow table, one row a picture: the schema of `predictions.parquet`.

    Columns: id, width, height, boxes (list of k*4 float32, x1 y1 x2 y2 in picture pixels),
    scores (list of k), landmarks (list of k*10, x y of 5 points), error and damage (null where
    none).
    """
    import pyarrow as pa

    def ragged(arrays: list[NDArray[np.float32]]) -> pa.Array:
        flat = [np.ascontiguousarray(a, np.float32).reshape(-1) for a in arrays]
        offsets = np.zeros(len(flat) + 1, np.int32)
        np.cumsum([a.size for a in flat], out=offsets[1:])
        values = np.concatenate([np.zeros(0, np.float32), *flat])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))

    return pa.table(
        {
            "id": pa.array([d.id for d in detections], pa.string()),
            "width": pa.array([d.width for d in detections], pa.int32()),
            "height": pa.array([d.height for d in detections], pa.int32()),
            "boxes": ragged([d.boxes for d in detections]),
            "scores": ragged([d.scores for d in detections]),
            "landmarks": ragged([d.landmarks for d in detections]),
            "error": pa.array([d.error for d in detections], pa.string()),
            "damage": pa.array([d.damage for d in detections], pa.string()),
        }
    )


def packed(table: pa.Table) -> bytes:
    """A table as a stream of Arrow's IPC format: to send it costs Ray a twentieth of a table."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def as_table(content: pa.Buffer | bytes) -> pa.Table:
    """The table of which `packed` made a content; its columns stay in the content's memory."""
    import pyarrow as pa

    return pa.ipc.open_stream(content).read_all()


def arrow_without_pandas() -> None:
    """Let pyarrow not import pandas, which takes half a second, at the first array it makes.

    It still does for what converts from or to pandas.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    class NoPandas(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pandas":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, NoPandas())
    try:
        pa.array([0])  # looks for it, this once
    finally:
        del sys.meta_path[0]


def from_arrow(table: pa.Table) -> list[Detections]:
    """The detections of a table made by `to_arrow`; its inverse."""

    def ragged(name: str) -> list[NDArray[np.float32]]:
        arrays = []
        for chunk in table.column(name).chunks:
            values = np.asarray(chunk.values, np.float32)
            arrays += [values[a:b] for a, b in itertools.pairwise(np.asarray(chunk.offsets))]
        return arrays

    return [
        Detections(
            **row, boxes=boxes.reshape(-1, 4), scores=scores, landmarks=landmarks.reshape(-1, 5, 2)
        )
        for row, boxes, scores, landmarks in zip(
            table.select(["id", "width", "height", "error", "damage"]).to_pylist(),
            *map(ragged, ("boxes", "scores", "landmarks")),
            strict=True,
        )
    ]


def read_detections(path: Path) -> list[Detections]:
    """The detections of a `predictions.parquet`, in its order."""
    import pyarrow.parquet as pq

    return from_arrow(pq.read_table(path))

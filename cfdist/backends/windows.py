"""Where to put windows of one size, so that they cover what a picture fills of the input.

Coordinates: cells of a `LocalPart`, half-open intervals of rows and of columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.backends.local_part import Box, Interval, LocalPart

# Input pixels a window, its surroundings left out: 80 rows of 800. Its largest tensor then takes
# 7 MB, and its surroundings a sixth of its time; on 2 cores 64 to 96 rows are equally fast.
WINDOW_PIXELS = 80 * 800

Kind = Literal["top", "middle", "bottom", "columns"]


@dataclass(frozen=True)
class Placement:
    """One window.

    Attributes:
        kind: Whole rows at the input's upper edge, at its lower edge or away from both; or whole
            columns away from its sides. Windows of one kind differ in nothing but their place.
        first: The first row, or column.
        overlaps: Whether it holds some of what a window before it in the list holds.
    """

    kind: Kind
    first: int
    overlaps: bool = False


@dataclass(frozen=True)
class WindowGrid:
    """The places that windows may have.

    Attributes:
        cells: Rows and columns of the input.
        size: Rows, or columns, of a window.
        before: Cells at the beginning of each axis that see what is padded there.
        after: The same for the end.
    """

    cells: tuple[int, int]
    size: int
    before: int
    after: int

    def box(self, placement: Placement) -> Box:
        """The rows and columns of a window."""
        along = (placement.first, placement.first + self.size)
        rows, columns = self.cells
        return ((0, rows), along) if placement.kind == "columns" else (along, (0, columns))

    def examples(self) -> dict[Kind, Placement]:
        """One placement of each kind."""
        return {
            "top": Placement("top", 0),
            "middle": Placement("middle", self.before),
            "bottom": Placement("bottom", self.cells[0] - self.size),
            "columns": Placement("columns", self.before),
        }

    def cover(self, rows: Interval, columns: Interval) -> list[Placement]:
        """Windows that hold all cells of some rows and columns, and not many others.

        Columns are chosen where they are the shorter way, and the sides are not reached.
        """
        low, high = self.before, self.cells[1] - self.after
        is_shorter = _share(columns, self.cells[1]) < _share(rows, self.cells[0])
        if is_shorter and columns[0] >= low and columns[1] <= high:
            return self._marked("columns", self._between(columns, low, high))
        low, high = self.before, self.cells[0] - self.after
        first, last = rows
        ends: dict[Kind, int] = {}
        if first < min(low, last):
            ends["top"] = 0
            first = self.size
        if last > max(high, first):
            ends["bottom"] = last = self.cells[0] - self.size
        return self._marked("middle", self._between((first, last), low, high), ends)

    def _between(self, wanted: Interval, low: int, high: int) -> list[int]:
        """Where windows begin inside `low` to `high`; the last one earlier rather than later."""
        first, last = wanted
        latest = min(max(last - self.size, low), high - self.size)
        return [min(start, latest) for start in range(first, last, self.size)]

    def _marked(
        self, kind: Kind, firsts: list[int], ends: Mapping[Kind, int] | None = None
    ) -> list[Placement]:
        placed: list[Placement] = []
        for each, first in [*(ends or {}).items(), *((kind, first) for first in firsts)]:
            overlaps = any(abs(first - other.first) < self.size for other in placed)
            placed.append(Placement(each, first, overlaps))
        return placed


def window_grid(part: LocalPart) -> WindowGrid | None:
    """The grid for a network's local part; `None` where the input is too small for windows."""
    longer = max(part.cells) * part.stride
    size = max(2, round(WINDOW_PIXELS / longer / part.stride))
    before = -(-part.reach.before // part.stride)
    after = (part.reach.after + part.stride) // part.stride - 1
    size = max(size, before, after)
    if min(part.cells) < before + size + after:
        return None
    return WindowGrid(part.cells, size, before, after)


def filled(picture: NDArray[np.uint8]) -> Box:
    """The rows and columns of an (H, W, 3) u8 input outside of which all is 0; pixels."""
    height, width, channels = picture.shape
    x, y, w, h = cv2.boundingRect(picture.reshape(height, width * channels))
    return (y, y + h), (x // channels, -(-(x + w) // channels))


def _share(interval: Interval, of: int) -> float:
    return (interval[1] - interval[0]) / of

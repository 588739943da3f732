"""What is kept of a measurement that may go on for hours: memory has a bound."""

from __future__ import annotations

import random
from array import array

import numpy as np
from numpy.typing import NDArray

# A 99th percentile of so many is as good as one of all.
MOST = 1 << 18


class Sample:
    """Rows of numbers: all of them while they are few, then a random part.

    Every row has the same chance, and the same rows are kept in each run. (An even part of pictures
    that are repeated might hold the same ones again and again.)

    Attributes:
        count: How many there were.
    """

    def __init__(self, columns: int = 1, most: int = MOST) -> None:
        """Keep at most so many rows."""
        self.count = 0
        self._columns, self._most = columns, most
        self._values = array("d")
        self._random = random.Random(0)

    def add(self, *row: float) -> None:
        """Add a row."""
        place, self.count = self.count, self.count + 1
        if place >= self._most:
            place = self._random.randrange(self.count)
            if place >= self._most:
                return
        first = place * self._columns
        self._values[first : first + self._columns] = array("d", row)

    def rows(self) -> NDArray[np.float64]:
        """(n, columns): what was kept."""
        return np.array(self._values).reshape(-1, self._columns)


class Ends:
    """When each of many batches ended: every one, then every second, fourth, ..., and the last.

    Attributes:
        count: How many have ended.
    """

    def __init__(self, most: int = MOST) -> None:
        """Keep at most so many times, an even number."""
        self.count = 0
        self._most, self._step, self._last = most, 1, 0.0
        self._times = array("d")

    def add(self, time: float) -> None:
        """Add the end of one more."""
        self.count, self._last = self.count + 1, time
        if self.count % self._step == 0:
            self._times.append(time)
            if len(self._times) == self._most:
                self._times = self._times[1::2]
                self._step *= 2

    def kept(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(n,) times, and how many had ended then."""
        counts = self._step * np.arange(1, len(self._times) + 1)
        if self.count % self._step:
            return np.append(self._times, self._last), np.append(counts, self.count)
        return np.array(self._times), counts

"""Work items, and the chunks that they travel in."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import ceil

from cfdist.widerface.manifest import WorkItem

# Ray takes a millisecond or two of processor time a chunk, over all its processes: small batches
# travel together, and more of them where a device is quick.
MIN_CHUNK = 8
MAX_CHUNK = 32
# A chunk should keep its device busy about so long.
CHUNK_SECONDS = 0.15

# Work items of one object in Ray's store.
BLOCK_ROWS = 10_000


def chunk_of(batch: int, group: int) -> int:
    """Pictures that travel together: a whole number of batches, at least `group` of them."""
    return batch * max(group, ceil(MIN_CHUNK / batch))


def largest_chunk(chunk: int) -> int:
    """What chunks grow to on a quick device, see `chunk_for_rate`."""
    return chunk * max(1, MAX_CHUNK // chunk)


def chunk_for_rate(chunk: int, rate: float) -> int:
    """How many pictures to hand out at once.

    Args:
        chunk: The least, from `chunk_of`.
        rate: Pictures a second that one device has done so far.

    Returns:
        A multiple of `chunk`, at most `largest_chunk(chunk)`.
    """
    times = int(rate * CHUNK_SECONDS / chunk)
    return min(chunk * max(1, times), largest_chunk(chunk))


class Work:
    """Work items in a Ray Dataset, taken from it block by block."""

    def __init__(self, items: Sequence[WorkItem]) -> None:
        """Put the items into Ray's object store."""
        import ray.data

        # It warns that no core is free; reading blocks takes none.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self.count = len(items)
        self._blocks = []
        if items:
            dataset = ray.data.from_items(
                [asdict(item) for item in items],
                override_num_blocks=ceil(len(items) / BLOCK_ROWS),
            )
            # Reading the blocks as they are spares the two actors that executing a plan starts,
            # 2.5 s of CPU time.
            self._blocks = dataset.to_arrow_refs()

    def __iter__(self) -> Iterator[WorkItem]:
        """The items in order."""
        import ray

        for block in self._blocks:
            for row in ray.get(block).to_pylist():
                yield WorkItem(**row)


class Shares:
    """Work in chunks, as the devices ask for them.

    Each lane begins with as little as fills its device once, so that all are busy soon. Towards the
    end the chunks become smaller, half of an equal share of what is left ("guided self-scheduling",
    Polychronopoulos and Kuck 1987), so that all lanes end together.
    """

    def __init__(self, work: Work, lanes: int, unit: int, first: int) -> None:
        """Begin with the first item.

        Args:
            work: What there is to do.
            lanes: Chunks that are worked on at the same time, over all devices.
            unit: Chunks are made smaller in steps of so many items.
            first: Items of each lane's first chunk, at most.
        """
        self._items = iter(work)
        self._left = work.count
        self._lanes = lanes
        self._unit = unit
        self._first = first
        self._begun = 0

    def next_chunk(self, size: int) -> list[WorkItem]:
        """The next items, `size` or fewer; empty when there are none left."""
        if self._begun < self._lanes:
            size = min(size, self._first)
            self._begun += 1
        share = ceil(self._left / (2 * self._lanes) / self._unit) * self._unit
        size = min(size, share, self._left)
        self._left -= size
        return list(itertools.islice(self._items, size))

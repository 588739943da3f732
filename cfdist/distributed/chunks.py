"""Work items, and the chunks that they travel in."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import ceil

from cfdist.widerface.manifest import WorkItem

# Ray takes a fraction of a millisecond a call: small batches travel together.
MIN_CHUNK = 8

# Work items of one object in Ray's store.
BLOCK_ROWS = 10_000


def chunk_of(batch: int, group: int) -> int:
    """Pictures that travel together: a whole number of batches, at least `group` of them."""
    return batch * max(group, ceil(MIN_CHUNK / batch))


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
    """Work in chunks, as the devices ask for them."""

    def __init__(self, work: Work, chunk: int, lanes: int, has_fixed_batch: bool) -> None:
        self._items = iter(work)
        self._left = work.count
        self._chunk = chunk
        self._lanes = lanes
        self._has_fixed_batch = has_fixed_batch
        self._last_share: int | None = None

    def next_chunk(self) -> list[WorkItem]:
        """The next items; empty when there are none left."""
        size = self._chunk
        if not self._has_fixed_batch and self._left <= size * self._lanes:
            # The last chunks, one a lane, are of one size, so that all lanes end together.
            self._last_share = self._last_share or ceil(self._left / self._lanes)
            size = self._last_share
        size = min(size, self._left)
        self._left -= size
        return list(itertools.islice(self._items, size))

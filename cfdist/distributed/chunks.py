"""Work items, and the chunks that they travel in."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from math import ceil

from cfdist.widerface.manifest import WorkItem

# Ray takes a millisecond or two of processor time a chunk, over all its processes: where a device
# is quick, batches travel together, up to so many pictures.
MAX_CHUNK = 32
# A chunk should keep its device busy about so long.
CHUNK_SECONDS = 0.25

# Work items of one object in Ray's store.
BLOCK_ROWS = 10_000


def largest_chunk(least: int) -> int:
    """What chunks grow to on a quick device, see `chunk_for_rate`."""
    return least * max(1, MAX_CHUNK // least)


def chunk_for_rate(least: int, rate: float) -> int:
    """How many pictures to hand out at once.

    Args:
        least: The pictures of as many batches as a device takes at once.
        rate: Pictures a second that one device has done so far.

    Returns:
        A multiple of `least`, at most `largest_chunk(least)`.
    """
    times = int(rate * CHUNK_SECONDS / least)
    return min(least * max(1, times), largest_chunk(least))


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

    Towards the end the chunks become smaller, a quarter of an equal share of what is left ("guided
    self-scheduling", Polychronopoulos and Kuck 1987), and a device that holds its fair part of what
    is not finished gets no more, so that all devices end together.
    """

    def __init__(self, work: Work, devices: Iterable[str], slots: int, batch: int) -> None:
        """Begin with the first item.

        Args:
            work: What there is to do.
            devices: Their names.
            slots: Chunks that each of them infers at the same time: its lanes.
            batch: Chunks are whole batches of so many items, but for the last one.
        """
        self._items = iter(work)
        self._left = work.count
        self._held = dict.fromkeys(devices, 0)
        self._finished = dict.fromkeys(self._held, 0)
        self._lanes = len(self._held) * slots
        self._batch = batch

    def next_chunk(self, device: str, size: int) -> list[WorkItem]:
        """The next items for a device, `size` or fewer; empty when it should get none now."""
        share = ceil(self._left / (4 * self._lanes) / self._batch) * self._batch
        size = min(size, share, self._room(device), self._left)
        self._left -= size
        self._held[device] += size
        return list(itertools.islice(self._items, size))

    def give_back(self, device: str, size: int, is_finished: bool) -> None:
        """Note that a device has no longer a chunk of so many items, finished or not."""
        self._held[device] -= size
        if is_finished and device in self._finished:
            self._finished[device] += size

    def leave_out(self, device: str) -> None:
        """Count no longer on a device that is lost for good."""
        self._finished.pop(device, None)

    def _room(self, device: str) -> int:
        """What the device may take without holding more than its part of what is not finished.

        Parts are as what each has finished, one batch at least. A device that holds nothing always
        gets some.
        """
        held = self._held[device]
        # Of the last batch a part may be left, which takes a device as long as a whole one.
        unfinished = ceil(self._left / self._batch) + sum(self._held.values()) / self._batch
        paces = {name: max(done, self._batch) for name, done in self._finished.items()}
        fair = unfinished * paces[device] / sum(paces.values())
        return self._batch * max(round(fair - held / self._batch), 0 if held else 1)

"""Which device gets how much work next."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from cfdist.devices.base import largest_chunk
from cfdist.distributed.work import Slice, Work

# A chunk should keep its device busy for about this time.
CHUNK_SECONDS = 0.25


def chunk_for_rate(least: int, rate: float) -> int:
    """A multiple of `least` to hand out, from the pictures a second that one device has done."""
    times = int(rate * CHUNK_SECONDS / least)
    return min(least * max(1, times), largest_chunk(least))


class Scheduler:
    """Deals out rows in chunks, as the devices ask for them.

    Towards the end the chunks become smaller: a quarter of an equal share of the rest ("guided
    self-scheduling", Polychronopoulos and Kuck 1987). A device that holds its fair part of the
    unfinished work gets no more. Thus all devices end together.
    """

    def __init__(self, work: Work, devices: Iterable[str], streams: int, batch: int) -> None:
        """Begin with the first row.

        Each device infers `streams` chunks at the same time. Chunks are whole batches, except for
        the last one.
        """
        self._work = work
        self._left = work.count
        self._held = dict.fromkeys(devices, 0)
        self._finished = dict.fromkeys(self._held, 0)
        self._streams = len(self._held) * streams
        self._batch = batch
        # Of all devices: with a thousand of them, sums at each question would take a second.
        self._all_held = 0
        self._all_paces = len(self._held) * batch

    @property
    def left(self) -> int:
        """Rows that nobody has been given yet."""
        return self._left

    def add(self, device: str) -> None:
        """Count on one more device, unless it is known."""
        if device not in self._held:
            self._held[device] = self._finished[device] = 0
            self._all_paces += self._batch

    def next_chunk(self, device: str, size: int) -> list[Slice]:
        """The next rows for a device, `size` or fewer; empty if it should get none now."""
        if not self._left:
            return []
        share = ceil(self._left / (4 * self._streams) / self._batch) * self._batch
        chunk = self._work.take(min(size, share, self._room(device), self._left))
        taken = sum(map(len, chunk))
        self._left -= taken
        self._held[device] += taken
        self._all_held += taken
        return chunk

    def give_back(self, device: str, size: int, is_finished: bool) -> None:
        """Note that a device no longer holds a chunk of this size, finished or not."""
        self._held[device] -= size
        self._all_held -= size
        if is_finished and device in self._finished:
            self._all_paces -= self._pace(device)
            self._finished[device] += size
            self._all_paces += self._pace(device)

    def leave_out(self, device: str) -> None:
        """Count no longer on a device that is lost for good."""
        if device in self._finished:
            self._all_paces -= self._pace(device)
            del self._finished[device]

    def _pace(self, device: str) -> int:
        return max(self._finished[device], self._batch)

    def _room(self, device: str) -> int:
        """What a device may take without holding more than its part of the unfinished work.

        A device's part is in proportion to what it has finished, at least one batch. A device that
        holds nothing always gets some.
        """
        held = self._held[device]
        # A part of the last batch takes a device as long as a whole batch.
        unfinished = ceil(self._left / self._batch) + self._all_held / self._batch
        fair = unfinished * self._pace(device) / self._all_paces
        return self._batch * max(round(fair - held / self._batch), 0 if held else 1)

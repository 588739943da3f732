"""A backend that notes what it is given."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from cfdist.backends.base import Backend, Capabilities
from cfdist.throughput.device import LoopReport


class RecordingBackend(Backend):
    """Notes what it is given; its batches take nothing."""

    def __init__(self, streams: int, group: int) -> None:
        self.streams, self.capabilities = streams, Capabilities(group=group)
        self.groups: list[int] = []
        self.most_inside = self._inside = 0
        self._times = [1.0]  # a batch before the loops
        self._lock = threading.Lock()
        self._all_inside = threading.Barrier(streams, timeout=30)

    @classmethod
    def check(cls, spec, options):
        pass

    def infer(self, inputs):
        return None

    def infer_many(self, batches):
        with self._lock:
            self.groups.append(len(batches))
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
            self._times += [2.0] * len(batches)
        self._all_inside.wait()
        with self._lock:
            self._inside -= 1
        return super().infer_many(batches)

    def device_times_ms(self):
        times, self._times = self._times, []
        return times


def looped(*ends: Sequence[float]) -> LoopReport:
    """The report of a device whose streams' batches ended at these seconds."""
    streams = [np.array(one, float) for one in ends]
    times = np.concatenate([np.diff(one, prepend=0.0) for one in streams])
    counts = [np.arange(1, len(one) + 1) for one in streams]
    return LoopReport(streams, counts, 1000 * times, (), "")

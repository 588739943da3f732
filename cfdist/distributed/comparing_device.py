"""A device actor that runs the same pictures through two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfdist import backends
from cfdist.backends.base import DeviceSettings
from cfdist.comparison import HeadDifference, compare_heads
from cfdist.decode import HeadMaps
from cfdist.distributed.device import Device, PeaksBatch, join_peaks
from cfdist.distributed.memory import memory_as_user_error
from cfdist.model import ModelSpec
from cfdist.preprocess import to_model_input
from cfdist.widerface.manifest import WorkItem


@dataclass(frozen=True)
class ComparedBatch:
    """The same pictures as two models saw them.

    Attributes:
        reference: The reference's peaks.
        candidate: The candidate's peaks, of the same pictures.
        heads: Head name -> difference of the maps; `None` where a graph gives peaks only.
    """

    reference: PeaksBatch
    candidate: PeaksBatch
    heads: dict[str, HeadDifference] | None


class ComparingDevice(Device):
    """A `Device` for the reference, with the candidate beside it on the same input."""

    def __init__(
        self,
        reference: tuple[str, ModelSpec],
        candidate: tuple[str, ModelSpec],
        settings: DeviceSettings,
        feeders: int,
    ) -> None:
        super().__init__(*reference, settings, feeders)
        self._load_candidate = (*candidate, settings)

    def warm_up(self, chunk: int, buffers: int, reducer=None) -> None:
        """See `Device.warm_up`."""
        super().warm_up(chunk, buffers, reducer)
        spec = self._spec
        with memory_as_user_error(spec.batch):
            self._candidate = backends.create(*self._load_candidate)
            self._make_inputs(self._candidate, chunk)
            zeros = np.zeros((spec.batch, spec.height, spec.width, 3), np.uint8)
            self._candidate.infer(to_model_input(zeros, self._candidate.contract))

    def process(self, items: Sequence[WorkItem]) -> ComparedBatch:
        """Read a chunk once, and infer it twice."""
        with self._read(items) as pictures:
            reference = self._infer(self._backend, pictures.warped)
            candidate = self._infer(self._candidate, pictures.warped)
            heads = self._compare(reference, candidate)
            batches = [
                PeaksBatch(
                    pictures.ids,
                    pictures.sizes,
                    join_peaks([self._peaks_of(result) for result in results], self._spec),
                    pictures.failures,
                )
                for results in (reference, candidate)
            ]
        return ComparedBatch(*batches, heads)

    @staticmethod
    def _compare(reference: list, candidate: list) -> dict[str, HeadDifference] | None:
        if not all(isinstance(result, HeadMaps) for result in (*reference, *candidate)):
            return None
        total: dict[str, HeadDifference] = {}
        for a, b in zip(reference, candidate, strict=True):
            for name, difference in compare_heads(a, b).items():
                total[name] = total.get(name, HeadDifference()) + difference
        return total

    def close(self) -> None:
        """See `Device.close`."""
        super().close()
        self._candidate.close()

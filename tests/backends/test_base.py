"""What a backend need not say."""

from __future__ import annotations

import numpy as np

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.decode import HeadMaps
from cfdist.preprocess import InputContract


class Brightness(Backend):
    """The smallest backend: a heat map of the pictures' mean values."""

    def __init__(self, spec, settings):
        super().__init__(spec, settings)
        self.contract = InputContract(spec.height, spec.width, None)

    @classmethod
    def check(cls, spec, options):
        """Nothing to look at."""

    def infer(self, inputs):
        cells = (self.spec.height // 4, self.spec.width // 4)
        means = inputs.mean(axis=(1, 2, 3), dtype=np.float32)
        maps = [np.empty((len(inputs), c, *cells), np.float32) for c in HeadMaps.CHANNELS]
        for one in maps:
            one[:] = means[:, None, None, None]
        return HeadMaps(*maps)


def test_a_backend_of_two_methods_is_whole(spec):
    backend = Brightness(spec(height=32, width=32), DeviceSettings(options={"a": 1}))
    batches = [np.full((2, 32, 32, 3), value, np.uint8) for value in (3, 7)]
    found = backend.infer_many(batches)
    assert [one.hm[0, 0, 0, 0] for one in found] == [3, 7]
    assert backend.capabilities == Capabilities()
    assert (backend.streams, backend.device_times_ms()) == (1, [])
    assert Brightness.device_kind({}) == "cpu"
    assert Brightness.pictures_at_once(batch=5, threads=2) == 5
    backend.close()

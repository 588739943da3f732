"""The detector of `job=detect` keeps the faces from a score on, and says what is doubtful."""

from __future__ import annotations

import numpy as np

from cfdist.detecting import device
from cfdist.detections import Detections

FOUND = Detections(
    "a.jpg",
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.array([0.9, 0.5, 0.4999], np.float32),
    np.arange(30, dtype=np.float32).reshape(3, 5, 2),
    8,
    6,
)


def test_the_threshold_itself_is_enough():
    kept = device.above(FOUND, 0.5)
    assert kept.scores.tolist() == FOUND.scores[:2].tolist()
    assert (kept.boxes == FOUND.boxes[:2]).all()
    assert (kept.landmarks == FOUND.landmarks[:2]).all()
    assert (kept.id, kept.width, kept.height) == ("a.jpg", 8, 6)


class Stub:
    """A detector with two sound pictures, one of doubtful outputs and one that is not there."""

    def __init__(self, *_):
        self.warm_up = self.report = self.close = lambda: None

    def process(self, chunk):
        return [
            FOUND,
            Detections("b.jpg", error="NaN", is_doubtful=True),
            Detections("c.jpg", error="cannot be read: no such file", is_doubtful=True),
        ]


def test_what_another_device_may_do_better_is_doubtful(monkeypatch):
    monkeypatch.setattr(device, "Detector", Stub)
    chunk = device.FaceFinder(None, None, 1, 0.6).process([])
    assert chunk.keys == ("a.jpg",)
    assert len(chunk.found[0].scores) == 1
    gone = (("c.jpg", "cannot be read: no such file"),)
    assert chunk.doubtful == (("b.jpg", "NaN"), *gone)
    assert chunk.failures == ()
    judged = chunk.judged(gone, chunk.doubtful[:1])
    assert (judged.keys, judged.failures) == (("a.jpg", "c.jpg"), gone)
    assert judged.doubtful == (("b.jpg", "NaN"),)

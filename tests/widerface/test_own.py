"""Metrics of other people get each picture once, and their mistakes one line."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.errors import UserError
from cfdist.widerface.ground_truth import PictureTruth
from cfdist.widerface.own import OwnMetrics, metric_notes

CODE = """
class Count:
    def __init__(self):
        self.boxes = 0
    def update_many(self, truths, boxes_xywh, scores):
        assert len(truths) == len(boxes_xywh) == len(scores)
        self.boxes += sum(map(len, scores))
    def merge(self, other):
        self.boxes += other.boxes
    def compute(self):
        return {"boxes": self.boxes}

class Infinite(Count):
    def compute(self):
        return {"boxes": float("inf")}

class Wrong(Count):
    def update_many(self, truths, boxes_xywh, scores):
        raise KeyError("no")

class Lacking:
    pass

class Needs:
    def __init__(self, size):
        pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "metrics_of_others.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return "metrics_of_others"


PICTURE = PictureTruth("0--Parade/a", np.array([[10.0, 10, 20, 20]]), np.ones((3, 1), bool))
FOUND = ([PICTURE], [np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])], [np.array([0.9, 0.8])])


def test_figures_are_those_of_all_pictures(module):
    one, other = (OwnMetrics([f"{module}:Count"]) for _ in range(2))
    one.update_many(*FOUND)
    other.update_many(*FOUND)
    one.merge(other)
    figures = one.compute()
    assert figures == {f"{module}:Count": {"boxes": 4.0}}
    assert metric_notes(figures) == [f"{module}:Count: boxes 4"]
    assert OwnMetrics().compute() == {}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Lacking", "has no method update_many; see docs/extending.md"),
        ("Needs", "TypeError: Needs.__init__() missing 1 required positional argument: 'size'"),
        ("Wrong", "KeyError: 'no'; mend it, or leave it out"),
        ("Infinite", "ValueError: compute() gives {'boxes': inf}, not finite numbers; mend it"),
    ],
)
def test_what_is_wrong_with_a_metric_is_said_in_one_line(module, name, line):
    with pytest.raises(UserError) as refused:
        metrics = OwnMetrics([f"{module}:{name}"])
        metrics.update_many(*FOUND)
        metrics.compute()
    assert str(refused.value).startswith(f"eval.metrics={module}:{name}: {line}")

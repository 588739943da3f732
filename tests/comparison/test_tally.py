"""Sums over compared chunks, and the verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cfdist.comparison.device import ComparedChunk
from cfdist.comparison.differences import HeadDifference
from cfdist.comparison.tally import Tally
from cfdist.detections import Detections
from cfdist.widerface.ground_truth import PictureTruth

BOX = np.array([[10, 10, 50, 50]], np.float32)


def found(id: str, shift: float = 0.0, error: str | None = None) -> Detections:
    if error:
        return Detections(id, error=error)
    landmarks = np.zeros((1, 5, 2), np.float32)
    return Detections(id, BOX + np.float32(shift), np.ones(1, np.float32), landmarks, 100, 100)


@pytest.fixture
def tally() -> Tally:
    truth = {
        f"e/{i}": PictureTruth(f"e/{i}", np.array([[10.0, 10, 40, 40]]), np.ones((3, 1), bool))
        for i in range(3)
    }
    return Tally(truth, "official")


@pytest.fixture
def limits(compose):
    return compose("job=compare").compare


def test_equal_models_are_within_every_tolerance(tally, limits):
    heads = {"hm": HeadDifference(0.0, 0.0, 4, 2.0, 2.0, 2.0)}
    both = [found("e/0"), found("e/1")]
    assert tally.add(ComparedChunk(both, both, heads)) == 0
    summary = tally.summary(limits)
    assert summary["reference"]["ap"] == summary["candidate"]["ap"]
    assert next(iter(summary["reference"]["ap"])) == "official"
    assert summary["within_tolerance"]
    assert summary["boxes"]["found_share"] == 1.0
    assert summary["heads"]["hm"]["cosine"] == pytest.approx(1.0)


def test_a_candidate_that_misses_is_past_the_tolerances(tally, limits):
    assert tally.add(ComparedChunk([found("e/0")], [found("e/0", shift=30)], {})) == 0
    summary = tally.summary(limits)
    assert summary["heads"] is None
    assert summary["within"] == {"ap": False, "boxes": False, "cosine": True}
    assert not summary["within_tolerance"]


def test_a_picture_that_one_side_lacks_has_failed_and_counts_for_neither(tally, limits):
    reference = [found("e/0"), found("e/1")]
    candidate = [found("e/0"), found("e/1", error="the candidate: NaN")]
    assert tally.add(ComparedChunk(reference, candidate, {})) == 1
    assert tally.failures == {"e/1": "the candidate: NaN"}
    assert [len(metric) for metric in tally.metrics.values()] == [1, 1]
    assert tally.summary(limits)["within_tolerance"]


def test_damaged_pictures_are_listed_whether_used_or_not(tally):
    used = replace(found("e/0"), damage="half")
    failed = Detections("e/1", error="half", damage="half")
    assert tally.add(ComparedChunk([used, failed], [used, failed], {})) == 1
    assert tally.damaged == {"e/0": "half", "e/1": "half"}
    assert tally.failures == {"e/1": "half"}

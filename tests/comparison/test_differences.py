"""Differences add up over pictures, and matches are one to one."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.comparison.differences import HeadDifference, compare_boxes, head_difference
from cfdist.detections import Detections


def detections(boxes: list[list[float]], scores: list[float]) -> Detections:
    return Detections("e/p", np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, "f4"))


def test_head_differences_add_up():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 4, 3, 5, 5)).astype(np.float32)
    whole = head_difference(a, b)
    parts = head_difference(a[:1], b[:1]) + head_difference(a[1:], b[1:])
    assert whole.largest == parts.largest == np.abs(a.astype(float) - b).max()
    assert parts.mean == pytest.approx(np.abs(a.astype(float) - b).mean())
    flat_a, flat_b = a.reshape(-1).astype(float), b.reshape(-1).astype(float)
    cosine = flat_a @ flat_b / np.linalg.norm(flat_a) / np.linalg.norm(flat_b)
    assert parts.cosine == pytest.approx(cosine)


def test_nan_is_never_hidden():
    bad = head_difference(np.zeros(3, np.float32), np.array([0, np.nan, 0], np.float32))
    fine = head_difference(np.ones(3, np.float32), np.ones(3, np.float32))
    for total in (bad + fine, fine + bad):
        assert np.isnan(total.largest)
        assert not total.cosine >= 0.5


def test_zero_maps():
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert head_difference(zeros, zeros).cosine == 1
    assert head_difference(zeros, ones).cosine == 0
    assert HeadDifference().mean == 0


def test_boxes_match_one_to_one_and_weak_ones_do_not_count():
    reference = detections([[0, 0, 99, 99], [0, 0, 99, 98], [200, 0, 299, 99]], [0.9, 0.8, 0.05])
    candidate = detections([[0, 0, 99, 99], [500, 0, 599, 99]], [0.85, 0.5])
    agreement = compare_boxes(reference, candidate)
    assert (agreement.reference, agreement.candidate) == (2, 2)
    assert (agreement.found, agreement.confirmed) == (1, 1)
    assert agreement.largest_score_difference == pytest.approx(0.05, abs=1e-6)
    assert agreement.found_share == agreement.confirmed_share == 0.5


def test_a_strong_box_may_be_found_as_a_weak_one():
    reference = detections([[0, 0, 99, 99]], [0.11])
    candidate = detections([[0, 0, 99, 99]], [0.09])
    agreement = compare_boxes(reference, candidate)
    assert (agreement.found, agreement.candidate, agreement.confirmed) == (1, 0, 0)


def test_no_boxes_agree():
    nothing = detections([], [])
    assert compare_boxes(nothing, nothing).found_share == 1
    total = compare_boxes(nothing, nothing) + compare_boxes(
        detections([[0, 0, 9, 9]], [1]), nothing
    )
    assert total.found_share == 0


def test_the_relative_difference_is_that_of_the_norms():
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, 50)).astype(np.float32)
    expected = np.linalg.norm(a.astype(float) - b) / np.linalg.norm(a)
    assert head_difference(a, b).relative == pytest.approx(expected, rel=1e-6)
    assert head_difference(a, a).relative == 0
    assert head_difference(a * 0, a * 0).relative == 0
    assert head_difference(a * 0, b).relative == np.inf
    assert np.isnan(head_difference(a, b * np.float32(np.nan)).relative)

"""Where each face of the sample set lies is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.errors import UserError
from cfdist.sample import pictures
from cfdist.sample.pictures import EVENTS, LEAST_HEIGHTS, paste, portrait, render_picture


@pytest.fixture(scope="module")
def rendered():
    """The first picture of each event."""
    return [render_picture(event, number, 0) for number, event in enumerate(EVENTS)]


def test_pictures_are_the_same_each_time(rendered):
    again = render_picture(EVENTS[2], 2, 0)
    np.testing.assert_array_equal(again.pixels, rendered[2].pixels)
    np.testing.assert_array_equal(again.truth.boxes, rendered[2].truth.boxes)


def test_every_face_lies_within_its_picture(rendered):
    for picture in rendered:
        height, width = picture.pixels.shape[:2]
        x, y, w, h = picture.truth.boxes.T
        assert len(x) > 0
        assert min(x.min(), y.min()) >= 0
        assert (x + w).max() <= width + 1
        assert (y + h).max() <= height + 1


def test_difficulties_follow_the_height_and_are_nested(rendered):
    for picture in rendered:
        for row, least in zip(picture.truth.counted, LEAST_HEIGHTS.values(), strict=True):
            assert row.tolist() == (picture.truth.boxes[:, 3] >= least).tolist()
        easy, medium, hard = picture.truth.counted
        assert not (easy & ~medium).any()
        assert not (medium & ~hard).any()


def test_some_faces_are_too_small_to_count(rendered):
    counted = np.concatenate([picture.truth.counted for picture in rendered], axis=1)
    assert counted.any(axis=1).all()
    assert not counted.all(axis=1).any()


def test_a_person_beyond_the_edge_is_cut_off():
    canvas = np.zeros((10, 10, 3), np.float32)
    person = np.ones((6, 6, 4), np.float32)
    paste(canvas, person, left=-3, top=7)
    expected = np.zeros((10, 10), np.float32)
    expected[7:, :3] = 1
    np.testing.assert_array_equal(canvas[..., 0], expected)


def test_the_portrait_is_opaque_at_the_face_and_clear_around_it():
    x, y, w, h = pictures.FACE_BOX
    opacity = portrait()[..., 3]
    assert opacity[y + h // 2, x + w // 2] == pytest.approx(1)
    assert opacity[0, 0] == 0


def test_a_matplotlib_without_its_pictures_is_named(monkeypatch):
    monkeypatch.setattr(pictures.cv2, "imread", lambda _: None)
    with pytest.raises(UserError, match=r"grace_hopper.jpg, which matplotlib .* lacks"):
        pictures.photograph()

"""The sample set's pictures: faces lie where the boxes say, uncovered, of heights that count."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cfdist.errors import UserError
from cfdist.sample import pictures
from cfdist.sample.pictures import (
    EVENTS,
    FACE_BOX,
    LEAST_HEIGHTS,
    Event,
    further_picture,
    paste,
    paste_crowd,
    portrait,
    render_picture,
)


def marked_portrait() -> NDArray[np.float32]:
    """The person in black with a white face."""
    marked = portrait().copy()
    marked[..., :3] = 0
    left, top, width, height = FACE_BOX
    marked[top : top + height, left : left + width, :3] = 255
    return marked


@given(st.integers(0, 10_000), st.floats(8, 200), st.floats(2.6, 6))
@settings(max_examples=20)
def test_the_boxes_are_where_the_faces_are_painted_and_nobody_hides_one(
    seed: int, face_height: float, spacing: float
) -> None:
    event = Event("Any", 1, (face_height, face_height), spacing=spacing)
    canvas = np.full((480, 640, 3), 0, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        marked = marked_portrait()
        patch.setattr(pictures, "portrait", lambda: marked)
        boxes = paste_crowd(np.random.default_rng(seed), canvas, event)
    assert len(boxes) >= 1
    assert (boxes[:, :2] >= 0).all()
    white = (canvas.min(axis=2) > 60).astype(np.uint8)
    inside = np.zeros_like(white)
    for x, y, width, height in boxes:
        # Resizing and rounding move an edge by a pixel; persons side by side may touch it.
        core = white[y + 1 : y + height - 1, x + 1 : x + width - 1]
        assert core.mean() > 0.95
        inside[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1] = 1
    assert not (white & ~inside & 1).any()


@given(st.integers(-30, 20), st.integers(-30, 15))
def test_a_person_is_cut_at_the_canvas(left: int, top: int) -> None:
    person = np.zeros((30, 30, 4), np.float32)
    person[..., 0], person[..., 3] = 100, 0.5
    canvas = np.full((16, 21, 3), 40, np.float32)
    paste(canvas, person, left, top)
    rows, columns = np.mgrid[:16, :21]
    covered = (rows >= top) & (rows < top + 30) & (columns >= left) & (columns < left + 30)
    np.testing.assert_array_equal(canvas[..., 0], np.where(covered, 120, 40))
    np.testing.assert_array_equal(canvas[..., 1], np.where(covered, 20, 40))


def test_the_portrait_is_mirrored_about_its_face() -> None:
    left, _, width, _ = FACE_BOX
    assert 2 * left + width == portrait().shape[1]


def test_the_face_box_holds_skin_and_its_surroundings_do_not() -> None:
    left, top, width, height = FACE_BOX
    hue = cv2.cvtColor(portrait()[..., :3].astype(np.uint8), cv2.COLOR_BGR2HSV)
    skin = (hue[..., 0] < 20) & (hue[..., 1] > 60) & (hue[..., 2] > 90)
    assert skin[top : top + height, left : left + width].mean() > 0.6
    assert skin[: top - 10].mean() < 0.05
    assert skin[top + height + 30 :].mean() < 0.05


def test_faces_count_from_their_heights_on_and_the_difficulties_nest() -> None:
    for number, event in enumerate(EVENTS):
        truth = render_picture(event, number, 0).truth
        heights = truth.boxes[:, 3]
        for counted, least in zip(truth.counted, LEAST_HEIGHTS.values(), strict=True):
            np.testing.assert_array_equal(counted, heights >= least)
        easy, medium, hard = truth.counted
        assert not (easy & ~medium).any()
        assert not (medium & ~hard).any()


def test_a_picture_follows_from_its_numbers_alone() -> None:
    first, again = (render_picture(EVENTS[4], 4, 2) for _ in range(2))
    other = render_picture(EVENTS[4], 4, 3)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.truth.id == "4--Night/4_Night_3"
    assert other.truth.id == "4--Night/4_Night_4"
    assert first.pixels.shape != other.pixels.shape or (first.pixels != other.pixels).any()


def test_night_is_dark_fog_is_bright_and_blur_is_smooth() -> None:
    def render(**changes: float) -> NDArray[np.float64]:
        event = Event("Any", 1, (40, 40), **changes)
        return render_picture(event, 0, 0).pixels.astype(np.float64)

    plain = render()
    assert render(light=0.1).mean() < 0.2 * plain.mean()
    assert render(light=0.1, veil=170).min() > 120
    assert render(noise=20.0).std() > plain.std()
    smooth = [np.abs(np.diff(p, axis=0)).mean() for p in (render(blur=5.0, noise=0.0), plain)]
    assert smooth[0] < 0.3 * smooth[1]


def test_a_matplotlib_without_its_sample_data_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.cbook

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(matplotlib.cbook, "get_sample_data", missing)
    portrait.cache_clear()
    with pytest.raises(UserError, match=r"grace_hopper\.jpg.*install matplotlib with pip"):
        portrait()


def test_further_pictures_come_event_after_event_and_are_not_in_the_set():
    ids = [further_picture(number).truth.id for number in (0, 1, len(EVENTS))]
    assert ids == [
        "0--Portraits/0_Portraits_13", "1--Groups/1_Groups_13", "0--Portraits/0_Portraits_14"
    ]  # fmt: skip

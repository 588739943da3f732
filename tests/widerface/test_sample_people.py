"""Where the faces of the sample set's people lie, and that they are painted there."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from cfdist.widerface.sample_people import (
    Cover,
    Look,
    clipped_box,
    cutout_level,
    face_extent,
    hold_in_front,
    occlusion_label,
    paste,
    person_affine,
)
from cfdist.widerface.sample_photo import FACE_BOX, cutout
from hypothesis import given
from hypothesis import strategies as st

looks = st.builds(Look, mirrored=st.booleans(), angle=st.floats(-60, 60), stretch=st.floats(0.5, 2))


@given(looks, st.floats(-50, 500), st.floats(-50, 500), st.floats(5, 400))
def test_face_extent_bounds_the_transformed_ellipse(
    look: Look, x: float, y: float, face_height: float
) -> None:
    affine = person_affine((x, y), face_height, look)
    left, top, width, height = FACE_BOX
    turn = np.linspace(0, 2 * np.pi, 20_000)
    outline = np.stack(
        [left + width / 2 * (1 + np.cos(turn)), top + height / 2 * (1 + np.sin(turn))]
    )
    moved = affine[:, :2] @ outline + affine[:, 2:]
    expected = np.concatenate([moved.min(axis=1), moved.max(axis=1)])
    np.testing.assert_allclose(face_extent(affine), expected, atol=1e-4)


def test_an_upright_face_has_the_asked_height_and_place() -> None:
    extent = face_extent(person_affine((100, 80), 40, Look(mirrored=True)))
    width = 40 * FACE_BOX[2] / FACE_BOX[3]
    np.testing.assert_allclose(extent, [100 - width / 2, 60, 100 + width / 2, 100])


@given(
    st.tuples(st.floats(-300, 300), st.floats(-300, 300)),
    st.tuples(st.floats(1, 200), st.floats(1, 200)),
)
def test_clipped_boxes_stay_inside_and_know_their_share(
    corner: tuple[float, float], size: tuple[float, float]
) -> None:
    extent = np.array([*corner, *np.add(corner, size)])
    (x, y, width, height), seen = clipped_box(extent, (120, 160))
    assert x >= 0
    assert y >= 0
    assert x + width <= 160
    assert y + height <= 120
    assert 0 <= seen <= 1 + 1e-9
    if (extent >= 0).all() and (extent <= [160, 120, 160, 120]).all() and width and height:
        assert seen == pytest.approx(1)
        np.testing.assert_allclose([x, y, x + width, y + height], extent, atol=0.5)
    if seen == 0:
        assert (width, height) == (0, 0)


def test_painted_faces_are_where_the_boxes_say() -> None:
    """A green cover over the whole face, nothing else green: its pixels are the box."""
    cover = Cover((0, 0, 1, 1), (0, 255, 0))
    for x, y, face_height in ((60, 70, 40), (120.4, 90.7, 63), (15, 60, 50), (150.5, 30.5, 9)):
        affine = person_affine((x, y), face_height, Look())
        rng = np.random.default_rng(0)
        person = hold_in_front(rng, cutout(False)[cutout_level(affine)], cover)
        canvas = np.zeros((180, 200, 3), np.float32)
        paste(canvas, person, affine, Look())
        green = canvas[..., 1] - canvas[..., [0, 2]].max(axis=2) > 128
        found = cv2.boundingRect(green.astype(np.uint8))
        box, _ = clipped_box(face_extent(affine), canvas.shape[:2])
        np.testing.assert_allclose(found, box, atol=1)


@pytest.mark.parametrize(
    ("sides", "seen", "label"),
    [(None, 1.0, 0), ((0, 0.8, 1, 1.2), 1.0, 1), ((0, 0.5, 1, 1.2), 1.0, 2), (None, 0.6, 2)],
)
def test_occlusion_labels(sides: tuple | None, seen: float, label: int) -> None:
    cover = Cover(sides, (0, 0, 0)) if sides else None
    assert occlusion_label(cover, seen) == label

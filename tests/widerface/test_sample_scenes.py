"""Which faces of the sample set's scenes count, and that none hides another."""

from __future__ import annotations

import itertools

import numpy as np
from cfdist.widerface.sample_photo import FACE_BOX
from cfdist.widerface.sample_scenes import DIFFICULTY_HEIGHTS, SCENES, Faces

from cfdist.widerface import sample_scenes


def test_a_face_mostly_outside_is_boxed_but_not_counted() -> None:
    faces = Faces(
        boxes=np.array([[0, 0, 20, 60], [5, 5, 50, 60], [5, 5, 8, 9]], np.int32),
        seen=np.array([0.3, 1.0, 1.0]),
        occlusion=np.array([2, 0, 0], np.uint8),
        pose=np.zeros(3, np.uint8),
    )
    for difficulty in DIFFICULTY_HEIGHTS:
        assert faces.counted(difficulty).tolist() == [False, True, False]


def test_nobody_in_front_hides_a_face() -> None:
    for scene in SCENES:
        if scene.at_edges or scene.density == 0:
            continue
        placed = list(sample_scenes._rows(scene))
        assert placed
        for (y, height), (next_y, next_height) in itertools.pairwise(placed):
            # The widest jitter of both rows, cap above the face included.
            cap = next_y - 0.1 * next_height - 1.12 * next_height * 210 / FACE_BOX[3]
            assert cap > y + 0.1 * height + 0.4 * 1.12 * height

"""Boxes that are written in another way than x y w h in pixels are told by trying."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist.decode import Peaks, decode_boxes
from cfdist.widerface import diagnosis
from cfdist.widerface.diagnosis import Sampled
from cfdist.widerface.ground_truth import PictureTruth

HEIGHT = 683


def pictures(seed: int, write, count: int = 8) -> list[Sampled]:
    """Pictures of which every face was found, a little beside; `write` makes the file's columns."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        n = int(random.integers(1, 9))
        size = random.uniform(20, 200, (n, 1)) * random.uniform(0.8, 1.25, (n, 2))
        faces = np.concatenate((random.uniform(0, [800, 480], (n, 2)), size), axis=1)
        boxes = faces + random.normal(0, 0.02, (n, 4)) * size[:, [0, 1, 0, 1]]
        scores = np.sort(random.uniform(0.1, 1, n))[::-1]
        made.append(Sampled(faces, write(boxes, scores)))
    return made


def corners(xywh):
    return np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)


def centres(xywh):
    return np.concatenate((xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]), axis=1)


SIDES = np.array([1024, HEIGHT] * 2)
WRITERS = {
    "x1 y1 x2 y2 score": lambda b, s: np.column_stack((corners(b), s)),
    "center_x center_y w h score": lambda b, s: np.column_stack((centres(b), s)),
    "y x h w score": lambda b, s: np.column_stack((b[:, [1, 0, 3, 2]], s)),
    "y1 x1 y2 x2 score": lambda b, s: np.column_stack((corners(b)[:, [1, 0, 3, 2]], s)),
    "score x y w h": lambda b, s: np.column_stack((s, b)),
    "score x1 y1 x2 y2": lambda b, s: np.column_stack((s, corners(b))),
    "x y w h score, in fractions of the picture's sides (0..1)": lambda b, s: np.column_stack(
        (b / SIDES, s)
    ),
    "x1 y1 x2 y2 score, in fractions of the picture's sides (0..1)": lambda b, s: np.column_stack(
        (corners(b) / SIDES, s)
    ),
    "center_x center_y w h score, in fractions of the picture's sides (0..1)": lambda b, s: (
        np.column_stack((centres(b) / SIDES, s))
    ),
    "x y w h score, in pixels of an input of 640 columns": lambda b, s: np.column_stack(
        (b * 640 / 1024, s)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_the_layout_that_was_written_is_found(name: str):
    found = diagnosis.other_layout(pictures(1, WRITERS[name], count=30))
    assert found is not None
    assert found.name == name
    assert found.share > 0.8
    assert found.as_given < 0.4


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_boxes_that_fit_have_no_other_layout(seed: int):
    right = pictures(seed, lambda b, s: np.column_stack((b, s)))
    assert diagnosis.other_layout(right) is None
    assert diagnosis.other_convention(right, "centerface") is None


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_boxes_anywhere_fit_in_no_layout(seed: int):
    random = np.random.default_rng(seed)

    def anywhere(boxes, scores):
        places = random.uniform(0, [900, 600], (len(boxes), 2))
        return np.column_stack((places, np.full((len(boxes), 2), 12.0), scores))

    found = diagnosis.other_layout(pictures(seed, anywhere, count=20))
    assert found is None


@pytest.mark.parametrize(("used", "right"), [(0, 1), (1, 0)])
def test_the_other_convention_s_boxes_are_those_that_it_decodes(used: int, right: int):
    names = list(diagnosis.CONVENTIONS)
    random = np.random.default_rng(3)
    values = random.normal(1, 0.7, (1, 20, 14)).astype(np.float32)
    cells = np.sort(random.choice(40_000, 20, replace=False))[None].astype(np.int32)
    peaks = Peaks(np.ones((1, 20), np.float32), cells, values)
    xywh = {}
    for name in names:
        boxes, _ = decode_boxes(peaks, name, np.array([[1024, 768]]), (800, 800))
        xyxy = boxes[0].astype(np.float64)
        xywh[name] = np.concatenate((xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]), axis=1)
    table = np.column_stack((xywh[names[used]], np.ones(20)))
    (other,) = [read for name, read in diagnosis.CONVENTIONS.items() if name == names[right]]
    # But for half a cell and the order of the offsets: less than two cells.
    np.testing.assert_allclose(other(table)[:, 2:4], xywh[names[right]][:, 2:], rtol=1e-3)
    np.testing.assert_allclose(
        centres(other(table)[:, :4])[:, :2], centres(xywh[names[right]])[:, :2], atol=30
    )
    found = diagnosis.other_convention([Sampled(other(table)[:, :4], table)], names[used])
    assert found is not None
    assert found.name == names[right]


def test_nothing_to_try_has_no_reading():
    assert diagnosis.other_layout([]) is None
    assert diagnosis.other_convention([], "centerface") is None


def test_the_sample_is_spread_over_the_pictures_with_counted_faces(tmp_path: Path):
    truth, files = {}, {}
    for i in range(200):
        counted = np.ones((3, 1), bool) if i % 2 else np.zeros((3, 1), bool)
        truth[f"e/{i}"] = PictureTruth(f"e/{i}", np.array([[i, 1.0, 20, 20]]), counted)
        files[f"e/{i}"] = tmp_path / f"{i}.txt"
        files[f"e/{i}"].write_text(f"e/{i}\n1\n{i} 1 20 20 0.5\n")
    files["e/1"] = None
    (tmp_path / "3.txt").unlink()
    chosen = diagnosis.sample(truth, files)
    places = [int(one.faces[0, 0]) for one in chosen]
    assert diagnosis.SAMPLE / 2 < len(chosen) <= diagnosis.SAMPLE
    assert all(place % 2 for place in places)
    assert min(places) < 10
    assert max(places) > 190
    assert chosen[0].table.tolist() == [[places[0], 1, 20, 20, 0.5]]

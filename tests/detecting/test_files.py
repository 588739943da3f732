"""JSON lines that say what was found, and copies on which it can be seen."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from cfdist.detecting import files
from cfdist.detections import Detections
from cfdist.preprocess import PictureError

FOUND = Detections(
    "a/ü.jpg",
    np.array([[10.126, 20, 50, 60.004]], np.float32),
    np.array([0.98766], np.float32),
    np.array([[[20, 30], [40, 30], [30, 40], [22, 50], [38, 50.5]]], np.float32),
    100,
    80,
)


def test_a_line_a_picture(tmp_path):
    path = tmp_path / files.LINES
    files.write_lines(path, [FOUND, Detections("b.jpg", error="empty file (0 bytes)")])
    first, second = path.read_text("utf-8").splitlines()
    assert "ü" in first
    assert json.loads(first) == {
        "path": "a/ü.jpg",
        "width": 100,
        "height": 80,
        "faces": [
            {
                "box": [10.13, 20.0, 50.0, 60.0],
                "score": 0.9877,
                "landmarks": [[20.0, 30.0], [40.0, 30.0], [30.0, 40.0], [22.0, 50.0], [38.0, 50.5]],
            }
        ],
    }
    # Not a picture without faces.
    assert json.loads(second)["faces"] is None
    assert json.loads(second)["error"] == "empty file (0 bytes)"


def test_copies_have_the_names_of_the_pictures():
    ids = ["a.gif", "a.gif.png", "a.jpg", "b/a.JPG", "scan"]
    expected = ["a.gif.2.png", "a.gif.png", "a.jpg", "b/a.JPG", "scan.png"]
    assert list(files.annotated_names(ids)) == expected


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp"])
def test_a_copy_shows_the_faces_and_the_picture_stays(tmp_path, suffix):
    picture = np.full((80, 100, 3), 128, np.uint8)
    source = tmp_path / f"x{suffix}"
    cv2.imwrite(str(source), picture)
    before = source.read_bytes()
    copy = tmp_path / "annotated" / "a" / f"x{suffix}"
    files.write_annotated(copy, str(source), FOUND)
    drawn = cv2.imread(str(copy)).astype(int)
    assert drawn.shape == picture.shape
    changed = np.abs(drawn - 128).max(axis=2) > 40
    assert changed[40, 10] and changed[40, 50]  # the sides of the box
    assert changed[30, 20] and changed[50, 38]  # landmarks
    assert not changed[:, 70:].any()
    assert not changed[70:].any()
    assert source.read_bytes() == before


def test_faces_beyond_the_edge_are_drawn_as_far_as_they_go():
    picture = np.zeros((20, 30, 3), np.uint8)
    beyond = np.array([[-500, -9, 1e6, 1e6]], np.float32)
    found = Detections("x", beyond, np.ones(1, np.float32), np.full((1, 5, 2), 1e6, np.float32))
    assert files.draw(picture, found).any()


def test_a_reason_with_bytes_that_are_no_utf8_is_written(tmp_path):
    files.write_lines(tmp_path / "x", [Detections("a", error="is damaged in \udcff.zip")])
    assert json.loads((tmp_path / "x").read_bytes())["error"] == "is damaged in \udcff.zip"


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("x.webp", (8, 17000), "17000x8 pixels do not fit .webp"),
        (f"{'x' * 252}.png", (8, 9), "cannot be written: File name too long"),
        ("there/x.png", (8, 9), "cannot be written: (File exists|Not a directory)"),
    ],
)
def test_a_copy_that_cannot_be_made_is_the_pictures_problem(tmp_path, name, size, reason):
    source, annotated = tmp_path / "source.png", tmp_path / "annotated"
    cv2.imwrite(str(source), np.zeros((*size, 3), np.uint8))
    annotated.mkdir()
    (annotated / "there").touch()
    with pytest.raises(PictureError, match=reason):
        files.write_annotated(annotated / name, str(source), Detections("x"))

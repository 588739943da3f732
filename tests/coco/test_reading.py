"""COCO detections of others: the rows that text files would have, or one line on what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.coco import coco_document
from cfdist.coco.reading import read_coco, write_prediction_files
from cfdist.detections import Detections
from cfdist.errors import UserError
from cfdist.widerface.predictions import STYLES, find_prediction_files, read_predictions_file, rows

IMAGES = [{"id": 1, "file_name": "a/x.jpg"}, {"id": "two", "file_name": "WIDER_val/images/b/y.jpg"}]
NOTE = {"image_id": 1, "bbox": [1, 2, 3, 4.5], "score": 0.5}


def written(content) -> bytes:
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def found(content) -> dict:
    return read_coco(written(content), "found.json")


def test_annotations_belong_to_the_images_of_the_file():
    notes = [NOTE, {**NOTE, "image_id": "two", "score": 1}, {**NOTE, "bbox": [-1, 0, -2, 0]}]
    read = found({"images": IMAGES, "annotations": notes})
    assert read == {
        "a/x.jpg": [(1.0, 2.0, 3.0, 4.5, 0.5), (-1.0, 0.0, -2.0, 0.0, 0.5)],
        "b/y.jpg": [(1.0, 2.0, 3.0, 4.5, 1.0)],
    }


def test_without_images_the_ids_are_names():
    read = found([{**NOTE, "image_id": name} for name in ("a/x", "b\\y.JPG", "z.1")])
    assert list(read) == ["a/x.jpg", "b/y.JPG", "z.1.jpg"]


def test_only_the_category_face_counts():
    notes = [{**NOTE, "category_id": 7}, {**NOTE, "category_id": 3, "score": 0.9}]
    listed = [{"id": 3, "name": "Face"}, {"id": 7, "name": "car"}]
    content = {"images": IMAGES, "annotations": notes, "categories": listed}
    assert found(content)["a/x.jpg"] == [(1.0, 2.0, 3.0, 4.5, 0.9)]
    with pytest.raises(UserError, match="detections of 2 categories, and none of them is called"):
        found(content | {"categories": listed[1:]})


def test_a_folder_of_text_files(tmp_path):
    content = written({"images": IMAGES, "annotations": [NOTE]})
    write_prediction_files(content, "found.json", tmp_path / "files")
    files = find_prediction_files(tmp_path / "files", ["a/x", "b/y", "c/z"])
    assert (sorted(files.found), files.missing) == (["a/x", "b/y"], ["c/z"])
    boxes, scores = read_predictions_file(files.found["a/x"])
    assert (boxes.tolist(), scores.tolist()) == ([[1, 2, 3, 4.5]], [0.5])
    assert len(read_predictions_file(files.found["b/y"])[0]) == 0


NUMBERS = st.floats(0, 2000, width=32)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(0, 1, width=32))))
def test_what_is_written_reads_as_the_prediction_files_do(numbers):
    table = np.array(numbers, np.float32).reshape(-1, 5)
    one = Detections("a/x", table[:, :4], table[:, 4], np.zeros((len(table), 5, 2), np.float32))
    expected = rows(one.boxes, one.scores, STYLES["official"])
    read = found(coco_document([one], ".jpg"))["a/x.jpg"]
    assert np.array(read).reshape(-1, 5).tolist() == expected.tolist()


def changed(**changes):
    return {"images": IMAGES, "annotations": [{**NOTE, **changes}]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "no JSON "),
        ("", "no JSON "),
        ("[" * 100_000, "no JSON "),
        ("3", "no COCO detections; expected"),
        ("{}", "no COCO detections; expected"),
        ({"images": 3, "annotations": []}, "no COCO detections; expected"),
        ({"images": [3], "annotations": []}, "image 0: no id or no file_name"),
        ({"images": [{"id": True, "file_name": "x"}], "annotations": []}, "image 0: no id or no"),
        ({"images": IMAGES[:1] * 2, "annotations": []}, "image 1: its id 1 or its picture a/x.jpg"),
        ({"images": [{"id": 1, "file_name": "a/.."}], "annotations": []}, "is no picture's name"),
        ({"images": IMAGES, "annotations": [3]}, "annotation 0: is 3; expected"),
        ({"images": IMAGES, "annotations": [{**NOTE, "id": 1}] * 2}, "annotation 1: the id 1 is"),
        (changed(image_id=9), "annotation 0: its image_id 9 is not among the images"),
        (changed(image_id=None), "annotation 0: its image_id is None"),
        ([NOTE], "annotation 0: its image_id is the number 1, and the file has no list of images"),
        (changed(score=None), "annotation 0: has no score; are these the faces that should be"),
        (changed(score="1"), "annotation 0: bbox .*expected x y w h and a score"),
        (changed(score=float("nan")), "annotation 0: bbox .*expected x y w h and a score"),
        (changed(bbox=[1, 2, 3]), "annotation 0: bbox .*expected x y w h and a score"),
        (changed(bbox=[1, 2, 3, 1e9]), "annotation 0: bbox .*expected x y w h and a score"),
        (changed(bbox=[1, 2, 3, True]), "annotation 0: bbox .*expected x y w h and a score"),
        (changed(bbox={"x": 1}), "annotation 0: bbox .*expected x y w h and a score"),
    ],
)
def test_what_is_no_coco_is_one_line(content, line):
    with pytest.raises(UserError, match=f"^found.json: .*{line}") as refused:
        found(content)
    assert "\n" not in str(refused.value)


def test_two_pictures_of_one_name_are_refused(tmp_path):
    images = [{"id": 1, "file_name": "a/x.jpg"}, {"id": 2, "file_name": "a/x.png"}]
    content = written({"images": images, "annotations": []})
    with pytest.raises(UserError, match="two pictures are called x"):
        write_prediction_files(content, "found.json", tmp_path)


def test_the_only_category_is_not_that_of_faces():
    listed = [{"id": 1, "name": "person"}, {"id": 2, "name": "face"}]
    content = {"images": IMAGES, "categories": listed}
    assert found(content | {"annotations": [{**NOTE, "category_id": 1}]})["a/x.jpg"] == []
    assert found(content | {"annotations": [{**NOTE, "category_id": 2}]})["a/x.jpg"]
    # Without a category, or with one that the file does not name, all are meant.
    assert found(content | {"annotations": [NOTE]})["a/x.jpg"]
    assert found(content | {"annotations": [{**NOTE, "category_id": 0}]})["a/x.jpg"]


@pytest.mark.parametrize("name", ["/", "a/\ud800.jpg", "a/x\ny.jpg"])
def test_a_name_that_no_file_has(name):
    with pytest.raises(UserError, match=r"is no picture's name$"):
        found([{**NOTE, "image_id": name}])

"""Detections as COCO has them."""

from __future__ import annotations

import json

import numpy as np

from cfdist.coco import coco_document, write_coco
from cfdist.detections import Detections

FOUND = Detections(
    "a/x",
    np.array([[1, 2, 4, 8], [0, 0, 1, 1]], np.float32),
    np.array([0.9, 0.25], np.float32),
    np.arange(20, dtype=np.float32).reshape(2, 5, 2),
    100,
    80,
)


def test_images_and_annotations_refer_to_each_other():
    document = coco_document([Detections("0", error="no"), FOUND, Detections("b")], ".jpg")
    assert document["images"] == [
        {"id": 1, "file_name": "a/x.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "b.jpg", "width": 0, "height": 0},
    ]
    (category,) = document["categories"]
    assert (category["id"], category["name"], len(category["keypoints"])) == (1, "face", 5)
    first, second = document["annotations"]
    assert first == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1.0, 2.0, 3.0, 6.0],
        "score": 0.9,
        "area": 18.0,
        "iscrowd": 0,
        "keypoints": [0.0, 1.0, 2, 2.0, 3.0, 2, 4.0, 5.0, 2, 6.0, 7.0, 2, 8.0, 9.0, 2],
        "num_keypoints": 5,
    }
    assert (second["id"], second["score"]) == (2, 0.25)


def test_the_file_is_json_with_names_as_they_are(tmp_path):
    write_coco(tmp_path / "coco.json", [Detections("人")])
    assert "人" in (tmp_path / "coco.json").read_text("utf-8")
    assert json.loads((tmp_path / "coco.json").read_text("utf-8"))["annotations"] == []

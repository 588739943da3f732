"""Detections as COCO has them: images, categories, and annotations with scores and key points.

A file that is written here can be loaded as a data set, and its list `annotations` as results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cfdist.detections import Detections
from cfdist.files import atomic_write, write_bytes

COCO = "coco.json"
FACE = 1  # the category's id

# As one looks at the picture: the first eye is the left one there.
KEY_POINTS = ("left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner")


def coco_document(found: Iterable[Detections], suffix: str = "") -> dict[str, Any]:
    """The content of a file of detections; pictures that failed are left out.

    Args:
        found: In the order of the images' ids, which count from 1.
        suffix: What a picture's file name has after its id.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for one in found:
        if one.error is not None:
            continue
        image = len(images) + 1
        name = f"{one.id}{suffix}"
        size = {"width": one.width, "height": one.height}
        images.append({"id": image, "file_name": name, **size})
        for box, score, points in zip(
            one.boxes.tolist(), one.scores.tolist(), one.landmarks.tolist(), strict=True
        ):
            left, top, right, bottom = box
            # As the prediction files of eval=official have them, so that both give the same AP.
            width, height = round(right - left, 3), round(bottom - top, 3)
            flat = [[round(x, 2), round(y, 2), 2] for x, y in points]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": FACE,
                    "bbox": [round(left, 3), round(top, 3), width, height],
                    "score": round(score, 6),
                    "area": round(width * height, 3),
                    "iscrowd": 0,
                    "keypoints": [value for point in flat for value in point],
                    "num_keypoints": len(flat),
                }
            )
    category = {"id": FACE, "name": "face", "supercategory": "person"}
    category |= {"keypoints": list(KEY_POINTS), "skeleton": []}
    return {"images": images, "categories": [category], "annotations": annotations}


def write_coco(path: Path, found: Iterable[Detections], suffix: str = "") -> None:
    """Write `coco_document`, whole or not at all."""
    content = json.dumps(coco_document(found, suffix), ensure_ascii=False)
    with atomic_write(path) as temporary:
        write_bytes(temporary, content.encode())

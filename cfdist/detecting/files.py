"""What `job=detect` writes: JSON lines, COCO, and copies of the pictures with the faces drawn."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.detections import Detections
from cfdist.files import atomic_write, write_bytes
from cfdist.preprocess import PictureError, decode_stored, picture_content

LINES = "detections.jsonl"
PARTIAL = "detections.partial.jsonl"  # of a run that has ended early
ANNOTATED = "annotated"

# What OpenCV writes as the suffix says; a copy of any other picture becomes a PNG.
_WRITTEN = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# Errors of a name that this file system does not take, such as that of a picture in an archive.
_OF_THE_NAME = (
    *(errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.EINVAL, errno.EILSEQ),
)

_BOX, _POINT, _TEXT = (80, 220, 60), (60, 80, 250), (20, 20, 20)  # blue, green, red


def as_json(found: Detections) -> dict[str, Any]:
    """What is said of a picture: coordinates with 2 decimals, scores with 4."""
    if found.error is not None:
        return {
            "path": found.id, "width": None, "height": None, "faces": None, "error": found.error
        }  # fmt: skip
    return {
        "path": found.id,
        "width": found.width,
        "height": found.height,
        "faces": [
            {"box": box, "score": score, "landmarks": landmarks}
            for box, score, landmarks in zip(
                rounded(found.boxes, 2),
                rounded(found.scores, 4),
                rounded(found.landmarks, 2),
                strict=True,
            )
        ],
    }


def rounded(values: NDArray[np.float32], decimals: int) -> list[Any]:
    """The values as nested lists of numbers of so many decimals."""
    # Minus zero becomes zero.
    return (np.round(values.astype(np.float64), decimals) + 0.0).tolist()  # type: ignore[no-any-return]


def write_lines(path: Path, found: Iterable[Detections]) -> None:
    """Write one JSON object a picture, each on a line of its own.

    Bytes of an archive's name that are no UTF-8, in a reason, become JSON's escapes.
    """
    with atomic_write(path) as temporary:
        lines = (json.dumps(as_json(one), ensure_ascii=False) + "\n" for one in found)
        write_bytes(temporary, "".join(lines).encode(errors="backslashreplace"))


def annotated_name(id: str) -> str:
    """The name of a picture's copy: its own, with ".png" after it if its format is not written."""
    is_written = PurePosixPath(id).suffix.lower() in _WRITTEN
    return id if is_written else f"{id}.png"


def annotated_names(ids: Iterable[str]) -> Iterator[str]:
    """The names of the copies, each another: a.gif beside a.gif.png becomes a.gif.2.png."""
    taken = set(ids := [*ids])
    for id in ids:
        name, number = annotated_name(id), 2
        while name != id and name in taken:
            name, number = f"{id}.{number}.png", number + 1
        taken.add(name)
        yield name


def write_annotated(path: Path, place: str, found: Detections) -> None:
    """Write a copy of a picture with its faces drawn.

    Args:
        path: The copy; its suffix says the format.
        place: The picture, or its place in a store.
        found: Its faces.

    Raises:
        PictureError: the picture can no longer be read, or not be written under this name.
        OSError: the copy cannot be written.
    """
    stored = decode_stored(picture_content(place), use_damaged=True, is_upright=True)
    picture = draw(cv2.cvtColor(stored.pixels, cv2.COLOR_BGRA2BGR), found)
    try:
        is_written, content = cv2.imencode(path.suffix.lower(), picture)
    except cv2.error:
        is_written = False
    if not is_written:  # a WebP has at most 16383 pixels a side
        raise PictureError(f"{picture.shape[1]}x{picture.shape[0]} pixels do not fit {path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.tobytes())
    except OSError as error:
        if error.errno in _OF_THE_NAME:
            raise PictureError(f"cannot be written: {error.strerror}") from None
        raise


def draw(picture: Any, found: Detections) -> Any:
    """Draw boxes, scores and landmarks into a picture, (h, w, 3) u8 BGR; returns it."""
    width = max(1, round(min(picture.shape[:2]) / 400))
    for box, score, points in zip(found.boxes, found.scores, found.landmarks, strict=True):
        left, top, right, bottom = (round(float(value)) for value in box)
        cv2.rectangle(picture, (left, top), (right, bottom), _BOX, width, cv2.LINE_AA)
        radius = max(1, round((right - left) / 40))
        for x, y in points:
            at = round(float(x)), round(float(y))
            cv2.circle(picture, at, radius, _POINT, cv2.FILLED, cv2.LINE_AA)
        _write_score(picture, f"{score:.2f}", (left, top, right), width)
    return picture


def _write_score(picture: Any, text: str, box: tuple[int, int, int], width: int) -> None:
    """Write a score above its box, or inside of it at the picture's edge, as wide as the box."""
    left, top, right = box
    (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 1)
    scale = min(max((right - left) / wide, 0.3), 0.5 * width + 0.3)
    wide, high = round(wide * scale), round(high * scale)
    bottom = top if top > high + 4 else top + high + 4
    left = max(0, min(left, picture.shape[1] - wide - 2))
    cv2.rectangle(picture, (left, bottom - high - 4), (left + wide + 2, bottom), _BOX, cv2.FILLED)
    place, line = (left + 1, bottom - 2), max(1, width // 2)
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, _TEXT, line, cv2.LINE_AA)

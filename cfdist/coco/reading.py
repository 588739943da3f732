"""Detections that others have written as COCO, as a folder of WIDER FACE's prediction files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from cfdist.errors import UserError
from cfdist.files import write_bytes
from cfdist.widerface.predictions import TOO_LARGE

_FORM = (
    'expected {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "bbox": [x, y, '
    'w, h], "score"}, ...]}, or the list of annotations alone with file names as image_id'
)


def write_prediction_files(content: bytes, source: str, folder: Path) -> None:
    """Write a prediction file for each picture of a COCO file.

    Args:
        content: The COCO file's.
        source: Its name, for messages.
        folder: It is made.

    Raises:
        UserError: the content is damaged, or something else than detections of one category.
    """
    for name, rows in read_coco(content, source).items():
        file = Path(folder, name).with_name(f"{PurePosixPath(name).stem}.txt")
        if file.exists():
            raise UserError(f"{source}: two pictures are called {file.stem}, the second is {name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (" ".join(map(repr, row)) for row in rows)
        write_bytes(file, ("\n".join([name, str(len(rows)), *lines]) + "\n").encode())


def read_coco(content: bytes, source: str) -> dict[str, list[tuple[float, ...]]]:
    """The detections of a COCO file; the arguments are those of `write_prediction_files`.

    Returns:
        "<event>/<name>.jpg", or the name alone where it is in no folder, of each picture, with its
        rows x y w h score.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: no JSON ({error}); {_FORM}") from None
    images, annotations = None, document
    if isinstance(document, dict):
        images, annotations = document.get("images"), document.get("annotations")
    if not isinstance(annotations, list) or not isinstance(images, list | None):
        raise UserError(f"{source}: no COCO detections; {_FORM}")
    names = None if images is None else _names(source, images)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in (names or {}).values()}
    face = _face(source, document, annotations)
    seen = set()
    for number, one in enumerate(annotations):
        where = f"{source}: annotation {number}"
        if not isinstance(one, dict):
            raise UserError(f"{where}: is {one!r:.60}; {_FORM}")
        if (key := one.get("id")) is not None:
            if repr(key) in seen:
                raise UserError(f"{where}: the id {key!r} is there twice; write the file again")
            seen.add(repr(key))
        if face is None or one.get("category_id") == face:
            rows.setdefault(_image_of(where, one, names), []).append(_row(where, one))
    return rows


def _names(source: str, images: list[Any]) -> dict[str | int, str]:
    """Image id -> the picture's name."""
    names: dict[str | int, str] = {}
    taken = set()
    for number, one in enumerate(images):
        where = f"{source}: image {number}"
        id, name = (one.get("id"), one.get("file_name")) if isinstance(one, dict) else (None, None)
        if not _is_id(id) or not isinstance(name, str):
            raise UserError(f"{where}: no id or no file_name; {_FORM}")
        short = _short(where, name)
        if id in names or short in taken:
            raise UserError(f"{where}: its id {id!r} or its picture {name} is there twice")
        names[cast(str | int, id)] = short
        taken.add(short)
    return names


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _short(where: str, name: str) -> str:
    """The last two parts of a picture's path: "<event>/<name>.jpg"."""
    parts = PurePosixPath(name.replace("\\", "/")).parts[-2:]
    short = "/".join(part for part in parts if part != "/")
    is_text = not any(one in "\0\n\r" or "\ud800" <= one <= "\udfff" for one in short)
    if not short or ".." in parts or not is_text:
        raise UserError(f"{where}: {name!a} is no picture's name")
    return short


def _face(source: str, content: Any, annotations: list[Any]) -> Any:
    """The id of the only category that counts; `None` if there is only one."""
    found = {repr(one.get("category_id")) for one in annotations if isinstance(one, dict)}
    listed = content.get("categories") if isinstance(content, dict) else None
    listed = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    known = {repr(one.get("id")) for one in listed}
    # Where a face is another one than the only category, nothing of it is a face.
    for one in listed if len(found) > 1 or found <= known else ():
        if str(one.get("name")).lower() in ("face", "faces"):
            return one.get("id")
    if len(found) < 2:
        return None
    raise UserError(
        f"{source}: detections of {len(found)} categories, and none of them is called face; leave "
        'the others out, or name it: "categories": [{"id": 1, "name": "face"}]'
    )


def _image_of(where: str, one: Mapping[str, Any], names: Mapping[str | int, str] | None) -> str:
    id = one.get("image_id")
    if not _is_id(id):
        raise UserError(f"{where}: its image_id is {id!r:.60}; {_FORM}")
    if names is not None:
        if id not in names:
            raise UserError(f"{where}: its image_id {id!r} is not among the images of the file")
        return names[cast(str | int, id)]
    if isinstance(id, int):
        raise UserError(
            f"{where}: its image_id is the number {id}, and the file has no list of images that "
            f"says which picture that is; {_FORM}"
        )
    name = _short(where, str(id))
    return name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.jpg"


def _row(where: str, one: Mapping[str, Any]) -> tuple[float, ...]:
    """X y w h score."""
    box, score = one.get("bbox"), one.get("score")
    if score is None:
        raise UserError(f"{where}: has no score; are these the faces that should be found?")
    values = [*box, score] if isinstance(box, list) else []
    is_number = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
    # NaN is not below anything.
    if len(values) != 5 or not all(is_number) or not all(abs(v) < TOO_LARGE for v in values):
        raise UserError(
            f"{where}: bbox {box!r:.80}, score {score!r:.20}: expected x y w h and a score, finite "
            f"numbers below {TOO_LARGE:.0e}"
        )
    return tuple(map(float, values))

"""A picture's size without decoding it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from cfdist.preprocess import PictureError, decode_picture

# JPEG markers (ITU-T T.81, table B.1): the frame headers hold the size; some have no segment.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_SEGMENT = frozenset({0x01, *range(0xD0, 0xD8)})
_LAST_BEFORE_DATA = frozenset({0xD9, 0xDA})


def picture_size(path: Path | str) -> tuple[int, int]:
    """Width and height of a picture file in pixels, as stored: EXIF orientation is ignored.

    A JPEG's header is read; anything else, whatever its name, is decoded.

    Raises:
        PictureError: the file cannot be read or is not a picture.
    """
    try:
        with open(path, "rb") as file:
            size = _jpeg_size(file)
            if size is not None:
                return size
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror or error}") from None
    height, width = decode_picture(content).shape[:2]
    return width, height


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height from the first frame header; `None` where it does not say."""
    if file.read(2) != b"\xff\xd8":
        return None
    while (code := _next_marker(file)) is not None and code not in _LAST_BEFORE_DATA:
        if code in _WITHOUT_SEGMENT:
            continue
        length = int.from_bytes(file.read(2), "big")
        if length < 2:
            return None
        if code in _FRAME_HEADERS:
            header = file.read(5)
            height, width = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
            return (width, height) if width and height else None
        file.seek(length - 2, 1)
    return None


def _next_marker(file: BinaryIO) -> int | None:
    """The code of the marker at the file's position; `None` where there is no marker."""
    if file.read(1) != b"\xff":
        return None
    code = file.read(1)
    while code == b"\xff":  # any number of fill bytes
        code = file.read(1)
    return code[0] if code else None

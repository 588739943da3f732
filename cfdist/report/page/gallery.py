"""Thumbnails of pictures with the faces and the finds drawn over them."""

from __future__ import annotations

import base64
import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cfdist import storage
from cfdist.preprocess import DamagedPictureError, PictureError, decode_damaged_picture
from cfdist.preprocess import decode_picture as decode_sound_picture

# All thumbnails of a page together with the boxes over them, bytes as they stand in it.
MOST_BYTES = 3_000_000

_SHOWN_SIDE = 320  # about what a thumbnail's longer side is on a screen
_CONTEXT = 5.0  # a cut-out is so many times as large as its face
_LEAST_SIDE = 120  # of a cut-out, pixels of the picture
_QUALITY = 78

_OF_ONE_FILE = (errno.ENOENT, errno.EBADMSG, errno.EFBIG)  # missing, damaged, too large

Box = tuple[float, float, float, float]  # x y w h, picture pixels


@dataclass(frozen=True)
class Drawn:
    """A box over a picture; `kind` is a class of the style sheet: what the box is."""

    box: Box
    kind: str


@dataclass(frozen=True)
class Entry:
    """A picture of a gallery.

    Attributes:
        title: The picture's name.
        text: What there is to see.
        images: The drawings, or nothing if the picture cannot be shown.
        data: The same for programs: names and values.
    """

    title: str
    text: str
    images: Sequence[Markup] = ()
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading; each may be wide."""

    title: str
    text: str
    entries: Sequence[Entry]
    is_wide: bool = False


def picture_pixels(place: str) -> NDArray[np.uint8]:
    """The pixels (h, w, 3) BGR of a picture file, also of a damaged one.

    Raises:
        OSError: it cannot be read.
        PictureError: it cannot be decoded.
    """
    content = storage.read(place)
    try:
        pixels = decode_sound_picture(content)
    except DamagedPictureError:
        pixels = decode_damaged_picture(content)
    return pixels[:, :, :3]


def around(box: Box, width: int, height: int) -> Box:
    """The cut-out (whole pixels) of a picture around a box."""
    x, y, w, h = box
    side = max(_CONTEXT * max(w, h), _LEAST_SIDE)
    side_x, side_y = min(side, width), min(side, height)
    left = min(max(x + w / 2 - side_x / 2, 0), width - side_x)
    top = min(max(y + h / 2 - side_y / 2, 0), height - side_y)
    return (int(left), int(top), max(1, int(side_x)), max(1, int(side_y)))


class Thumbnails:
    """Makes the drawings of a page, as long as there is room for them."""

    def __init__(self, most_bytes: int = MOST_BYTES, side: int = 320) -> None:
        """Have room for so many bytes, and give the longer side of each so many pixels."""
        self._left, self._side, self._count = most_bytes, side, 0
        self._silent: dict[str, str] = {}  # store -> why; one that is gone is slow to say so

    def data_uri(self, pixels: NDArray[np.uint8], view: Box) -> str | None:
        """A part of a picture as a small JPEG in a data URI; `None` once the page is full."""
        x, y, w, h = (int(value) for value in view)
        scale = min(1.0, self._side / max(w, h))
        size = max(1, round(w * scale)), max(1, round(h * scale))
        part = np.ascontiguousarray(pixels[y : y + h, x : x + w])
        small = cv2.resize(part, size, interpolation=cv2.INTER_AREA) if scale < 1 else part
        _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        uri = f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
        if len(uri) > self._left:
            return None
        self._left -= len(uri)
        return uri

    def show(
        self,
        entry: Entry,
        place: str | None,
        view: Callable[[int, int], Box],
        layers: Iterable[tuple[str, Iterable[Drawn]]],
    ) -> Entry:
        """An entry with its picture, once for each layer of boxes; or with why there is none.

        Args:
            entry: Without images.
            place: Where the picture is, see `cfdist.storage`; `None`: nobody has said.
            view: From the picture's width and height to the part to show.
            layers: (what the boxes are, the boxes), side by side.
        """
        if place is None:
            return _without(entry, "The picture is not shown: dataset.root is not given")
        store = storage.store_at(place)
        try:
            if store in self._silent:
                raise OSError(errno.EIO, self._silent[store])
            pixels = picture_pixels(place)
        except (OSError, PictureError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if store and isinstance(error, OSError) and error.errno not in _OF_ONE_FILE:
                self._silent[store] = reason
            return _without(entry, f"The picture cannot be read any more: {reason}")
        part = view(pixels.shape[1], pixels.shape[0])
        uri = self.data_uri(pixels, part)
        if uri is None:
            return _without(entry, "Not drawn, for the page is full")
        self._count += 1
        images = [*drawings(entry.title, f"picture{self._count}", uri, part, layers)]
        boxes = sum(map(len, images)) - len(uri)
        if boxes > self._left:
            self._left += len(uri)
            return _without(entry, "Not drawn, for the page is full")
        self._left -= boxes
        return replace(entry, images=images)


def _without(entry: Entry, why: str) -> Entry:
    return replace(entry, text=f"{entry.text}. {why}")


def drawings(
    title: str,
    image_id: str,
    uri: str,
    view: Box,
    layers: Iterable[tuple[str, Iterable[Drawn]]],
) -> Iterator[Markup]:
    """One SVG a layer; they share the picture's bytes."""
    x, y, w, h = view
    for number, (name, boxes) in enumerate(layers):
        image = (
            Markup('<image id="{}" href="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                image_id, uri, x, y, w, h
            )
            if number == 0
            else Markup('<use href="#{}"/>').format(image_id)
        )
        rects = [_rect(one, max(w, h) / _SHOWN_SIDE) for one in boxes if _meets(one.box, view)]
        alt = f"{title}: {name}"
        yield Markup(
            '<svg role="img" aria-label="{}" class="thumb" viewBox="{} {} {} {}">{}{}</svg>'
        ).format(alt, x, y, w, h, image, Markup("").join(rects))


def _rect(drawn: Drawn, unit: float) -> Markup:
    """A box with a light and a dark line, so that it shows on any picture."""
    x, y, w, h = drawn.box
    rect = Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '
        'stroke-width="{:.2f}"/>'
    )
    width, height = max(w, 0.1), max(h, 0.1)
    thick = unit * (3.0 if drawn.kind in ("missed", "wrong") else 2.0)
    return rect.format("halo", x, y, width, height, thick * 2) + rect.format(
        drawn.kind, x, y, width, height, thick
    )


def _meets(box: Box, view: Box) -> bool:
    return (
        box[0] <= view[0] + view[2]
        and view[0] <= box[0] + box[2]
        and box[1] <= view[1] + view[3]
        and view[1] <= box[1] + box[3]
    )

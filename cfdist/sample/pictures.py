"""The pictures of the sample set: one person, pasted many times in front of drawn backdrops.

The person is cut out of `grace_hopper.jpg`, which comes with matplotlib: the official portrait of
Commodore Grace M. Hopper, taken by the US Navy, in the public domain. Each picture has its own
fixed seed. The same versions of numpy and OpenCV give the same pixels.

Coordinates are pixels, x to the right, y down, pixel 0 covers [0, 1). Pixels are blue, green, red,
float32 0..255 unless a docstring says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.errors import UserError
from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth

LEAST_HEIGHTS = dict(zip(DIFFICULTIES, (50, 25, 10), strict=True))
"""Least height in pixels of a face that counts at a difficulty.

WIDER FACE calls 10 to 50 pixels its small scale. The boxes of smaller faces are ignored.
"""

FACE_BOX = (162, 131, 173, 203)
"""x y w h of the face in `portrait`, cap to chin and cheek to cheek, read off a grid."""

_PHOTO = "grace_hopper.jpg"
_PHOTO_SHAPE = (600, 512, 3)
_FIRST_COLUMN = 15  # of the photograph: the face is in the middle of the columns from here on
_COAT_ROW = 560  # of the photograph: repeated in all rows below
_ROWS = 800  # of the portrait: the coat ends behind the people in front, or below the canvas
_OUTLINE = (  # in the photograph, read off the same grid as FACE_BOX
    *[(225, 28), (285, 28), (318, 45), (343, 68), (351, 88), (366, 90), (373, 215), (360, 275)],
    *[(331, 316), (376, 349), (487, 389), (509, 447), (509, _ROWS), (26, _ROWS), (26, 447)],
    *[(52, 385), (91, 365), (150, 350), (204, 316), (197, 298), (163, 268), (154, 195)],
    *[(162, 172), (151, 145), (153, 110), (196, 50), (216, 42)],
)

_SIZES = ((683, 1024), (768, 1024), (1024, 1024), (1024, 683), (480, 640))  # height, width


@dataclass(frozen=True)
class Event:
    """What the pictures of an event show.

    Attributes:
        name: the event's name without its number.
        pictures: how many pictures there are.
        faces: least and greatest height of the faces in the farthest row, in pixels, at most 200.
        spacing: mean distance of two neighbours in a row, in face heights.
        blur: standard deviation of a Gaussian blur in pixels; 0 for none.
        light: factor on all pixels, below 1 for night and for fog.
        veil: grey that fog adds to all pixels.
        noise: standard deviation of the noise added to each pixel.
    """

    name: str
    pictures: int
    faces: tuple[float, float]
    spacing: float = 3.0
    blur: float = 0.0
    light: float = 1.0
    veil: float = 0.0
    noise: float = 3.0


EVENTS = (
    Event("Portraits", 12, (120, 200)),
    Event("Groups", 12, (40, 80)),
    Event("Crowds", 12, (6, 12), spacing=6, blur=2.9),
    Event("Blur", 11, (20, 120), blur=7.5),
    Event("Night", 11, (14, 100), light=0.06, noise=7),
    Event("Fog", 11, (14, 80), light=0.1, veil=170, noise=9),
)


class Picture(NamedTuple):
    """One picture of the set: its (h, w, 3) uint8 BGR pixels and its faces."""

    pixels: NDArray[np.uint8]
    truth: PictureTruth


def render_set(events: Sequence[Event] = EVENTS) -> Iterator[Picture]:
    """All pictures, event by event."""
    for number, event in enumerate(events):
        for index in range(event.pictures):
            yield render_picture(event, number, index)


def further_picture(number: int) -> Picture:
    """A picture of the set's kind that is not in it; its number is 0 and up, event after event."""
    event = number % len(EVENTS)
    return render_picture(EVENTS[event], event, EVENTS[event].pictures + number // len(EVENTS))


def render_picture(event: Event, number: int, index: int) -> Picture:
    """One picture of an event; the numbers of event and picture are the seed."""
    rng = np.random.default_rng([number, index])
    height, width = _SIZES[rng.integers(len(_SIZES))]
    canvas = backdrop(rng, height, width)
    boxes = paste_crowd(rng, canvas, event)
    if event.blur:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), event.blur), np.float32)
    canvas *= event.light
    canvas += event.veil
    canvas += event.noise * rng.standard_normal(canvas.shape, np.float32)
    counted = np.array([boxes[:, 3] >= least for least in LEAST_HEIGHTS.values()])
    picture_id = f"{number}--{event.name}/{number}_{event.name}_{index + 1}"
    return Picture(
        np.clip(np.rint(canvas, out=canvas), 0, 255).astype(np.uint8),
        PictureTruth(picture_id, boxes.astype(np.float64), counted),
    )


def backdrop(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Coloured clouds with ellipses in front of them, some as large and as bright as faces."""
    canvas = np.full((height, width, 3), rng.uniform(50, 180, 3), np.float32)
    for _ in range(60):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(4, 90)), int(rng.integers(4, 90)))
        colour = rng.uniform(20, 220, 3).tolist()
        cv2.ellipse(canvas, centre, axes, int(rng.integers(180)), 0, 360, colour, -1)
    for cells in (4, 16, 64):
        clouds = rng.uniform(-30, 30, (cells, cells)).astype(np.float32)
        large = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
        canvas += large[..., None].astype(np.float32, copy=False)
    return canvas


def paste_crowd(
    rng: np.random.Generator, canvas: NDArray[np.float32], event: Event
) -> NDArray[np.int64]:
    """Paste rows of people into a canvas, in place, from the farthest to the nearest.

    Every face lies within the canvas, and nobody in front hides one.

    Returns:
        (g, 4) boxes of the faces, x y w h, at least one.
    """
    height, width = canvas.shape[:2]
    face_height = float(np.exp(rng.uniform(*np.log(event.faces))))
    chin = max(height * rng.uniform(0.3, 0.5), face_height)
    boxes = []
    while chin <= height:
        scale = face_height / FACE_BOX[3]
        person = cv2.resize(portrait(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        face_width = scale * FACE_BOX[2]
        left = rng.uniform(0, min(event.spacing * face_height, width - face_width))
        while left <= width - face_width:
            box = np.rint([left, chin - face_height, face_width, face_height]).astype(int)
            turned = person[:, :: rng.choice([-1, 1])]
            # Factors on blue, green, red and opacity: one person's brightness and colour.
            colour = rng.uniform(0.7, 1.15) * rng.uniform(0.9, 1.1, 3)
            tint: NDArray[np.float32] = np.append(colour, 1).astype(np.float32)
            origin = np.rint(box[:2] - scale * np.array(FACE_BOX[:2])).astype(int)
            paste(canvas, turned * tint, *origin.tolist())
            boxes.append(box)
            left += event.spacing * face_height * rng.uniform(0.7, 1.3)
        face_height *= 1.12
        # A cap ends half a face height above the face.
        chin += 1.9 * face_height
    return np.array(boxes)


def paste(canvas: NDArray[np.float32], person: NDArray[np.float32], left: int, top: int) -> None:
    """Blend a person into a canvas, in place.

    Args:
        canvas: (h, w, 3).
        person: (h, w, 4), as `portrait`.
        left: where in the canvas the person begins; may be negative.
        top: likewise.
    """
    rows, columns = canvas.shape[:2]
    person = person[max(-top, 0) : rows - top, max(-left, 0) : columns - left]
    part = canvas[max(top, 0) :, max(left, 0) :][: person.shape[0], : person.shape[1]]
    part *= 1 - person[..., 3:]
    part += person[..., :3]


@functools.cache
def portrait() -> NDArray[np.float32]:
    """The person cut out of the photograph, with a longer coat.

    Returns:
        (800, 497, 4): blue, green, red, each multiplied by the opacity, and the opacity 0..1.

    Raises:
        UserError: matplotlib came without its sample data.
    """
    import matplotlib.cbook  # here, because it is slow and only making the set needs it

    photo = None
    with contextlib.suppress(OSError):
        photo = cv2.imread(str(matplotlib.cbook.get_sample_data(_PHOTO, asfileobj=False)))
    if photo is None or photo.shape != _PHOTO_SHAPE:
        raise UserError(
            f"the sample set is made from matplotlib's sample picture {_PHOTO}, which matplotlib "
            f"{matplotlib.__version__} as installed here lacks: install matplotlib with pip"
        )
    below = _ROWS - _COAT_ROW
    photo = cv2.copyMakeBorder(photo[:_COAT_ROW], 0, below, 0, 0, cv2.BORDER_REPLICATE)
    opacity = np.zeros(photo.shape[:2], np.float32)
    cv2.fillPoly(opacity, [np.array(_OUTLINE, np.int32)], (1.0,))
    opacity = np.asarray(cv2.GaussianBlur(opacity, (0, 0), 1.5), np.float32)[..., None]
    return np.dstack([photo * opacity, opacity])[:, _FIRST_COLUMN:]

"""The photograph from which the sample set is made, and the person cut out of it.

It is `grace_hopper.jpg` of matplotlib's sample data: the official portrait of Commodore Grace M.
Hopper, taken by the US Navy, in the public domain. All coordinates are its pixels, x to the
right, y down, pixel 0 covers [0, 1).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import cv2
import numpy as np

from cfdist.errors import UserError

FACE_BOX = (177.0, 131.0, 173.0, 203.0)
"""x y w h of the face in the photograph, read off a grid of 50 px lines drawn over it at twice
its size, in WIDER's manner: brim of the cap (for the hidden hairline) to chin, cheek to cheek."""

PERSON_SHAPE = (1536, 512)
"""Height and width of the person at full size.

Rows of coat and legs are drawn below the photograph so that people reach the ground; these rows
and columns can be halved without a rest."""

_PHOTO = "grace_hopper.jpg"
_PHOTO_SHAPE = (600, 512, 3)
_COAT_ROW = 560  # above the last button; drawn again in all rows below

# Outlines in the photograph, read off the same grid as FACE_BOX; what is below row 600 is drawn.
# fmt: off
_SILHOUETTE = (
    (255, 24), (285, 28), (318, 45), (343, 68), (351, 88), (366, 90), (371, 135), (370, 178),
    (375, 195), (373, 215), (362, 250), (360, 275), (348, 298), (332, 306), (331, 316), (348, 332),
    (376, 349), (442, 369), (487, 389), (500, 412), (509, 447), (509, 640), (490, 850), (462, 960),
    (425, 975), (420, 1100), (400, 1530), (290, 1530), (268, 1110), (246, 1110), (225, 1530),
    (115, 1530), (95, 1100), (90, 975), (55, 960), (28, 850), (18, 640), (26, 447), (38, 407),
    (52, 385), (91, 365), (150, 350), (190, 328), (204, 316), (197, 298), (176, 286), (163, 268),
    (160, 240), (155, 212), (154, 195), (162, 172), (151, 145), (153, 110), (166, 96), (174, 86),
    (177, 72), (196, 50), (216, 42), (225, 28),
)
_FRONT = (  # neck, shirt, name plate and ribbons
    (197, 310), (332, 310), (330, 420), (465, 475), (465, 545), (70, 545), (70, 470), (198, 420),
)
# fmt: on


@functools.cache
def photograph() -> np.ndarray:
    """The photograph, (600, 512, 3) uint8 BGR."""
    import matplotlib.cbook  # here, because it is slow and only making the set needs it

    photo = None
    with contextlib.suppress(OSError):
        photo = cv2.imread(str(matplotlib.cbook.get_sample_data(_PHOTO, asfileobj=False)))
    if photo is None or photo.shape != _PHOTO_SHAPE:
        raise UserError(
            f"the sample set is made from matplotlib's sample picture {_PHOTO}, which matplotlib "
            f"{matplotlib.__version__} as installed here lacks: install matplotlib with pip"
        )
    return photo


@functools.cache
def cutout(turned: bool) -> list[np.ndarray]:
    """The person without the background, at full size and halved again and again.

    Returns:
        (h, w, 5) float32 arrays: blue, green, red 0..255, opacity 0..1, and 0..1 how much of a
        pixel is cloth that can be dyed.
    """
    below = PERSON_SHAPE[0] - _COAT_ROW
    photo = cv2.copyMakeBorder(photograph()[:_COAT_ROW], 0, below, 0, 0, cv2.BORDER_REPLICATE)
    photo = photo.astype(np.float32)
    silhouette = _filled(_SILHOUETTE)
    cloth = np.clip(1 - photo.mean(axis=2) / 90, 0, 1) * (1 - _face_mask(1.25))
    if turned:
        photo, cloth = _from_behind(photo, cloth)
    levels = [np.dstack([photo, silhouette, cloth])]
    while levels[-1].shape[1] > 8:
        rows, columns, channels = levels[-1].shape
        squares = levels[-1].reshape(rows // 2, 2, columns // 2, 2, channels)
        # Weighted by opacity, so that the photograph's background does not seep in. The least
        # weight gives the invisible pixels a colour too.
        weights = squares[..., 3:4] + np.float32(1e-3)
        half = (squares * weights).sum(axis=(1, 3)) / weights.sum(axis=(1, 3))
        half[..., 3] = squares[..., 3].mean(axis=(1, 3))
        levels.append(half)
    return levels


def _from_behind(photo: np.ndarray, cloth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hair where the face was, and cloth where neck, shirt and ribbons were."""
    rng = np.random.Generator(np.random.PCG64(0))
    strands = cv2.GaussianBlur(rng.uniform(20, 90, photo.shape[:2]), (1, 0), 1.2, sigmaY=25)
    hair = np.clip((strands - 55) * 6 + 55, 10, 120)[..., None] * np.array([0.6, 0.8, 1.0])
    front, head = _filled(_FRONT), _face_mask(1.3)
    photo = photo * (1 - front[..., None]) + 22 * front[..., None]
    photo = photo * (1 - head[..., None]) + hair * head[..., None]
    cloth = np.maximum(cloth, 0.7 * front) * (1 - head)
    return photo.astype(np.float32), cloth.astype(np.float32)


def _filled(outline: Sequence[tuple[int, int]]) -> np.ndarray:
    """A polygon as a soft-edged float32 mask of a person."""
    mask = np.zeros(PERSON_SHAPE, np.float32)
    cv2.fillPoly(mask, [np.array(outline, np.int32)], 1.0)
    return cv2.GaussianBlur(mask, (0, 0), 1.5)


def _face_mask(scale: float) -> np.ndarray:
    """FACE_BOX's ellipse, scaled, but not above the cap's brim: a float32 mask of a person."""
    left, top, width, height = FACE_BOX
    mask = np.zeros(PERSON_SHAPE, np.float32)
    centre = (round(left + width / 2), round(top + height / 2))
    axes = (round(scale * width / 2), round(scale * height / 2))
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 1.0, -1)
    mask[: int(top)] = 0
    return cv2.GaussianBlur(mask, (0, 0), 3)

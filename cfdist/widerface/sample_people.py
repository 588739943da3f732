"""People of the sample set: how each differs from the photograph, and where the face then lies.

A person is placed by a (2, 3) matrix from photograph to picture pixels, x to the right, y down,
pixel 0 covers [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cfdist.widerface.sample_photo import FACE_BOX, PERSON_SHAPE, cutout


@dataclass(frozen=True)
class Cover:
    """Something flat held in front of a face; left, top, right, bottom as shares of FACE_BOX."""

    sides: tuple[float, float, float, float]
    colour: tuple[float, float, float]

    @property
    def share(self) -> float:
        """The share of the face's box that it hides."""
        left, top, right, bottom = np.clip(self.sides, 0, 1)
        return float((right - left) * (bottom - top))


@dataclass(frozen=True)
class Look:
    """How one person differs from the photograph.

    Attributes:
        mirrored: left and right are swapped.
        angle: rotation about the face's centre, degrees, clockwise as seen.
        stretch: width over height, relative to the photograph.
        gamma: exponent on 0..1 values, below 1 is brighter.
        gain: factors on blue, green, red.
        cloth: blue, green, red added to cap and coat, 0..255.
        turned: seen from behind.
        cover: what hides part of the face, if anything.
    """

    mirrored: bool = False
    angle: float = 0.0
    stretch: float = 1.0
    gamma: float = 1.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cloth: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turned: bool = False
    cover: Cover | None = None


def person_affine(centre: tuple[float, float], face_height: float, look: Look) -> np.ndarray:
    """(2, 3) float64 matrix from photograph to picture: the face's centre goes to `centre`."""
    left, top, width, height = FACE_BOX
    scale = face_height / height
    angle = np.deg2rad(look.angle)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mirror = -1 if look.mirrored else 1
    linear = scale * rotation @ np.diag([mirror * look.stretch, 1.0])
    origin = np.array([left + width / 2, top + height / 2])
    return np.column_stack([linear, np.array(centre) - linear @ origin])


def face_extent(affine: np.ndarray) -> np.ndarray:
    """Bounding box x1 y1 x2 y2, float64, of the face under a (2, 3) matrix.

    The face is taken as the ellipse that touches FACE_BOX's sides: a rotated head's box is
    tighter than the box around the rotated box. The image of the unit circle under a linear map
    reaches, along each axis, as far as the norm of that row of the map.
    """
    left, top, width, height = FACE_BOX
    centre = affine[:, :2] @ [left + width / 2, top + height / 2] + affine[:, 2]
    reach = np.linalg.norm(affine[:, :2] * [width / 2, height / 2], axis=1)
    return np.concatenate([centre - reach, centre + reach])


def clipped_box(
    extent: np.ndarray, shape: tuple[int, int]
) -> tuple[tuple[int, int, int, int], float]:
    """A box x1 y1 x2 y2 cut to a picture of `shape` (h, w).

    Returns:
        Whole x y w h, and the share of the area that is inside; 0.0 if no whole pixel is.
    """
    height, width = shape
    cut = np.clip(extent, 0, [width, height, width, height])
    x1, y1, x2, y2 = np.rint(cut).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return (0, 0, 0, 0), 0.0
    inside = np.prod(cut[2:] - cut[:2]) / np.prod(extent[2:] - extent[:2])
    return (x1, y1, x2 - x1, y2 - y1), float(inside)


def occlusion_label(cover: Cover | None, seen: float) -> int:
    """WIDER's occlusion label: 1 (partial) from 1 % hidden on, 2 (heavy) above 30 %."""
    hidden = 1 - seen * (1 - (cover.share if cover else 0.0))
    return int(hidden >= 0.01) + int(hidden > 0.3)


def cutout_level(affine: np.ndarray) -> int:
    """Which halving of the cutout to draw from, so that no pixel is skipped on the way down."""
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    return int(np.clip(np.floor(-np.log2(scale)), 0, len(cutout(False)) - 1))


def hold_in_front(rng: np.random.Generator, person: np.ndarray, cover: Cover) -> np.ndarray:
    """A copy of a cutout of any level with a cover, a little textured, over its face."""
    scale = person.shape[1] / PERSON_SHAPE[1]
    left, top, width, height = FACE_BOX
    sides = np.array(cover.sides) * [width, height, width, height] + [left, top, left, top]
    x1, y1, x2, y2 = np.rint(sides * scale).astype(int).tolist()
    person = person.copy()
    area = person[y1:y2, x1:x2]
    area[..., :3] = np.float32(cover.colour) + rng.normal(0, 6, (*area.shape[:2], 1))
    area[..., 3:] = 1, 0
    return person


def _dress(person: np.ndarray, look: Look) -> np.ndarray:
    """The (h, w, 5) pixels of a cutout in a person's own colours: (h, w, 3) float32."""
    colour = person[..., :3] + person[..., 4:] * np.float32(look.cloth)
    # 255 * (colour / 255) ** gamma * gain in two passes over the pixels.
    factor = np.multiply(look.gain, 255 ** (1 - look.gamma))
    return cv2.pow(colour, look.gamma) * np.float32(factor)


def paste(canvas: np.ndarray, person: np.ndarray, affine: np.ndarray, look: Look) -> None:
    """Dress a cutout and blend it into a float32 canvas, in place.

    `affine` is in the photograph's pixels, whatever the cutout's level.
    """
    rows, columns = person.shape[:2]
    to_photo = PERSON_SHAPE[1] / columns
    matrix = affine * [to_photo, to_photo, 1]
    reach = np.array([[0, 0, 1], [columns, 0, 1], [0, rows, 1], [columns, rows, 1]]) @ matrix.T
    x1, y1 = np.maximum(np.floor(reach.min(axis=0)), 0).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(reach.max(axis=0)), canvas.shape[1::-1]).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return
    # OpenCV counts from pixel centres, the matrix from pixel corners.
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5 - [x1, y1]
    drawn = cv2.warpAffine(person, matrix, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR)
    part = canvas[y1:y2, x1:x2]
    part += drawn[..., 3:4] * (_dress(drawn, look) - part)

"""What the sample set shows: a table of scenes, and their rendering to pictures with known faces.

Each picture has its own fixed seed; the same versions of numpy and OpenCV give the same pixels.
Coordinates are picture pixels, x to the right, y down, pixel 0 covers [0, 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cfdist.widerface.sample_drawing import BACKDROPS, EFFECTS, random_colour
from cfdist.widerface.sample_people import (
    Cover,
    Look,
    clipped_box,
    cutout_level,
    face_extent,
    hold_in_front,
    occlusion_label,
    paste,
    person_affine,
)
from cfdist.widerface.sample_photo import cutout

DIFFICULTY_HEIGHTS = {"easy": 50, "medium": 25, "hard": 10}
"""Least height in pixels of a face that counts in a difficulty."""

LEAST_SEEN = 1 / 3
"""Least share of a face's box inside the picture for the face to count."""

_WIDTH = 1024  # of nearly all pictures of WIDER FACE


@dataclass(frozen=True)
class Scene:
    """One row of the table below: what some pictures of an event show.

    Attributes:
        event: name without its number, in WIDER's manner.
        pictures: how many there are.
        height: of the pictures, in pixels.
        faces: least and greatest face height in pixels, at the top and bottom row of people.
        band: where the face centres of the top and the bottom row lie, as shares of the height.
        spacing: mean distance of neighbours in a row, in face heights.
        density: share of the places in the rows that are taken.
        tilt: greatest rotation of a head, in degrees.
        turned: share of the people seen from behind; these have no box.
        covered: share of the faces with something held in front of them.
        at_edges: people stand on the picture's edges instead of in rows.
        backdrops: names in BACKDROPS to draw from.
        effects: names in EFFECTS, applied to the picture in this order.
        width: of the pictures, in pixels.
    """

    event: str
    pictures: int
    height: int
    faces: tuple[float, float]
    band: tuple[float, float]
    spacing: float = 2.6
    density: float = 1.0
    tilt: float = 8.0
    turned: float = 0.0
    covered: float = 0.0
    at_edges: bool = False
    backdrops: tuple[str, ...] = ("park", "bricks", "facade", "curtain", "foliage", "flag")
    effects: tuple[str, ...] = ()
    width: int = _WIDTH


_OUTSIDE = ("park", "facade", "hedge", "courtyard")
_UNUSED = (0.0, 0.0)

SCENES: tuple[Scene, ...] = (
    Scene("Portraits", 2, 1280, (300, 300), (0.42, 0.42), spacing=3),
    Scene("Portraits", 2, 1024, (380, 380), (0.5, 0.5), spacing=3),
    Scene("Portraits", 3, 768, (200, 200), (0.45, 0.45), tilt=15),
    Scene("Portraits", 2, 683, (240, 240), (0.5, 0.5), effects=("grain",)),
    Scene("Groups", 4, 683, (50, 100), (0.3, 0.65), turned=0.1, covered=0.1),
    Scene("Groups", 3, 768, (30, 60), (0.4, 0.7), density=0.7, covered=0.15),
    Scene("Groups", 2, 480, (50, 70), (0.3, 0.6), tilt=15, width=640, effects=("defocus",)),
    Scene("Crowds", 5, 683, (9, 16), (0.4, 0.75), density=0.35, backdrops=_OUTSIDE),
    Scene("Crowds", 4, 768, (10, 34), (0.35, 0.9), density=0.45, turned=0.2, backdrops=_OUTSIDE),
    Scene("Crowds", 2, 1365, (8, 28), (0.5, 0.9), density=0.35, covered=0.2, backdrops=_OUTSIDE),
    Scene("Blur", 3, 768, (50, 120), (0.3, 0.75), tilt=15, effects=("strong motion",)),
    Scene("Blur", 3, 683, (20, 48), (0.4, 0.8), density=0.5, effects=("motion", "grain")),
    Scene("Blur", 2, 683, (24, 48), (0.45, 0.8), density=0.5, effects=("strong defocus",)),
    Scene("Blur", 2, 683, (70, 140), (0.25, 0.75), effects=("strong defocus",)),
    Scene("Night", 3, 683, (40, 120), (0.3, 0.8), backdrops=("lights",), effects=("dark",)),
    Scene("Night", 3, 768, (16, 45), (0.4, 0.8), density=0.5, backdrops=("facade", "lights"),
          effects=("dark", "strong compression")),
    Scene("Fog", 3, 683, (9, 36), (0.4, 0.8), density=0.4, effects=("haze",)),
    Scene("Fog", 3, 683, (25, 70), (0.3, 0.7), density=0.6, effects=("haze", "grain")),
    Scene("Edges", 3, 768, (100, 240), _UNUSED, tilt=15, at_edges=True),
    Scene("Edges", 3, 683, (25, 60), _UNUSED, at_edges=True),
    Scene("Masquerade", 3, 768, (50, 120), (0.25, 0.65), covered=0.6, turned=0.2),
    Scene("Masquerade", 3, 683, (18, 48), (0.45, 0.8), density=0.5, covered=0.7, turned=0.3),
    Scene("Empty", 3, 683, _UNUSED, _UNUSED, density=0.0),
    Scene("Empty", 3, 768, (20, 80), (0.4, 0.9), density=0.7, turned=1.0, backdrops=_OUTSIDE),
)  # fmt: skip


@dataclass(frozen=True)
class Faces:
    """The ground truth of one picture, g faces.

    Attributes:
        boxes: (g, 4) int32 x y w h, cut to the picture.
        seen: (g,) float64, share of the face's box that is inside the picture.
        occlusion: (g,) uint8, WIDER's 0 none, 1 partial, 2 heavy.
        pose: (g,) uint8, WIDER's 0 typical, 1 atypical.
    """

    boxes: np.ndarray
    seen: np.ndarray
    occlusion: np.ndarray
    pose: np.ndarray

    def counted(self, difficulty: str) -> np.ndarray:
        """The faces that count in a difficulty, (g,) bool."""
        tall = self.boxes[:, 3] >= DIFFICULTY_HEIGHTS[difficulty]
        return tall & (self.seen >= LEAST_SEEN)


@dataclass(frozen=True)
class Picture:
    """One rendered picture: its names, its (h, w, 3) uint8 BGR pixels and its faces."""

    event: str
    name: str
    scene: Scene
    pixels: np.ndarray
    faces: Faces


def render_set(scenes: Sequence[Scene] = SCENES) -> Iterator[Picture]:
    """All pictures of the scenes, in the order of the table."""
    events = list(dict.fromkeys(scene.event for scene in scenes))
    done = dict.fromkeys(events, 0)
    for scene in scenes:
        number = events.index(scene.event)
        for _ in range(scene.pictures):
            done[scene.event] += 1
            yield render_picture(scene, number, done[scene.event])


def render_picture(scene: Scene, event_number: int, picture_number: int) -> Picture:
    """One picture; what chance decides follows from the two numbers alone."""
    rng = np.random.Generator(np.random.PCG64([event_number, picture_number]))
    canvas = BACKDROPS[rng.choice(scene.backdrops)](rng, scene.height, scene.width)
    faces = _put_people(rng, scene, canvas)
    for name in scene.effects:
        canvas = EFFECTS[name].apply(rng, canvas)
    name = f"{event_number}_{scene.event}_{picture_number}"
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Picture(f"{event_number}--{scene.event}", name, scene, pixels, faces)


def _put_people(rng: np.random.Generator, scene: Scene, canvas: np.ndarray) -> Faces:
    """Draw the scene's people onto the canvas and say where their faces are."""
    place = _places_at_edges if scene.at_edges else _places_in_rows
    # Far to near: shoulders of a lower face never hide a higher one.
    places = sorted(place(rng, scene), key=lambda spot: spot[1] + spot[2] / 2)
    rows = []
    for x, y, face_height in places:
        look = _random_look(rng, scene)
        affine = person_affine((x, y), face_height, look)
        person = cutout(look.turned)[cutout_level(affine)]
        if look.cover and not look.turned:
            person = hold_in_front(rng, person, look.cover)
        paste(canvas, person, affine, look)
        if not look.turned:
            box, seen = clipped_box(face_extent(affine), canvas.shape[:2])
            rows.append((*box, seen, occlusion_label(look.cover, seen), abs(look.angle) > 15))
    table = np.array([row for row in rows if row[4] > 0], np.float64).reshape(-1, 7)
    return Faces(
        boxes=table[:, :4].astype(np.int32),
        seen=table[:, 4],
        occlusion=table[:, 5].astype(np.uint8),
        pose=table[:, 6].astype(np.uint8),
    )


Place = tuple[float, float, float]
"""x and y of a face's centre, and its height, in picture pixels."""


def _places_in_rows(rng: np.random.Generator, scene: Scene) -> Iterator[Place]:
    """Rows of people; the nearer (lower), the larger, as in a crowd seen from a little above."""
    for y, row_height in _rows(scene) if scene.density > 0 else ():
        x = rng.uniform(0.4, 0.8 + 0.5 * scene.spacing) * row_height
        while x < scene.width - 0.4 * row_height:
            if rng.uniform() < scene.density:
                jitter = rng.uniform(-0.1, 0.1) * row_height
                yield x, y + jitter, row_height * rng.uniform(0.88, 1.12)
            x += scene.spacing * row_height * rng.uniform(0.75, 1.35)


def _rows(scene: Scene) -> Iterator[tuple[float, float]]:
    """Centre and height of the faces of each row, from the farthest to the nearest.

    A cap ends about one face height above the face's centre. With some room for jitter, it is
    kept below the chins of the row behind, so that nobody in front hides a face.
    """
    top, bottom = (share * scene.height for share in scene.band)
    small, large = scene.faces
    chins = -np.inf
    for y in np.arange(top, bottom + 1):
        height = small * (large / small) ** ((y - top) / max(bottom - top, 1))
        if y - 1.2 * height >= chins:
            chins = y + 0.65 * height
            yield float(y), float(height)


def _places_at_edges(rng: np.random.Generator, scene: Scene) -> Iterator[Place]:
    """Faces cut by the four edges, far enough from each other that no head hides a face."""
    taken: list[Place] = []
    for _ in range(40):
        face_height = rng.uniform(*scene.faces)
        along, inwards = rng.uniform(0.05, 0.95), rng.uniform(-0.2, 0.45) * face_height
        x, y = {
            "left": (inwards, along * scene.height),
            "right": (scene.width - inwards, along * scene.height),
            "top": (along * scene.width, inwards),
            "bottom": (along * scene.width, scene.height - inwards),
        }[str(rng.choice(["left", "right", "top", "bottom"]))]
        distances = [np.hypot(x - tx, y - ty) - 1.9 * max(face_height, th) for tx, ty, th in taken]
        if min(distances, default=0) >= 0 and len(taken) < 12:
            taken.append((x, y, face_height))
    yield from taken


def _random_look(rng: np.random.Generator, scene: Scene) -> Look:
    brightness, cloth = rng.uniform(0.8, 1.1), rng.choice([20, 60, 110, 160])
    return Look(
        mirrored=bool(rng.uniform() < 0.5),
        angle=float(rng.uniform(-scene.tilt, scene.tilt)),
        stretch=float(rng.uniform(0.92, 1.08)),
        gamma=float(np.exp(rng.uniform(-0.3, 0.35))),
        gain=random_colour(rng, 0.92 * brightness, 1.08 * brightness),
        cloth=random_colour(rng, 0.4 * cloth, cloth),
        turned=bool(rng.uniform() < scene.turned),
        cover=_random_cover(rng) if rng.uniform() < scene.covered else None,
    )


def _random_cover(rng: np.random.Generator) -> Cover:
    """A mask or scarf over mouth and chin, a sign over one side, or a bar over the eyes."""
    depth = rng.uniform(0.25, 0.5)
    kinds = [(-0.1, 1 - depth, 1.1, 1.1), (1 - depth, -0.2, 1.3, 1.2), (-0.1, 0.12, 1.1, 0.36)]
    return Cover(kinds[rng.integers(len(kinds))], random_colour(rng, 20, 240))

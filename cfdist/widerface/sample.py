"""A small data set in the WIDER layout, made on the spot from one free photograph.

It lets every part of the product run, and mean something, where WIDER FACE itself may not go.
The only source is `grace_hopper.jpg` of matplotlib's sample data: the official portrait of
Commodore Grace M. Hopper, taken by the US Navy, in the public domain.
She is cut out of it and put, in many sizes, colours and states, in front of drawn backdrops, so
where each face lies is known by construction. Each picture has its own fixed seed; the same
versions of numpy, OpenCV and scipy give the same bytes.

Difficulties follow the height of a face in picture pixels: easy 50 and more, medium 25 and more,
hard 10 and more (10 to 50 is what WIDER FACE calls the small scale); they are nested. Smaller
faces, and faces of which a picture's edge leaves less than a third, have a box but are in no
list: the protocol ignores them.

Coordinates are picture pixels, x to the right, y down, pixel 0 covers [0, 1).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import scipy.io

from cfdist.errors import UserError
from cfdist.files import fsync

SAMPLE_VERSION = "1"
"""Changes whenever the pictures or the boxes do; a set of another version is made anew."""

DIFFICULTY_HEIGHTS = {"easy": 50, "medium": 25, "hard": 10}
"""Least height in pixels of a face that counts in a difficulty."""

LEAST_SEEN = 1 / 3
"""Least share of a face's box inside the picture for the face to count."""

FACE_BOX = (177.0, 131.0, 173.0, 203.0)
"""x y w h of the face in the photograph, read off a grid of 50 px lines drawn over it at twice
its size, in WIDER's manner: brim of the cap (for the hidden hairline) to chin, cheek to cheek."""

MARKER = "sample.json"

_PHOTO = "grace_hopper.jpg"
_PHOTO_SHAPE = (600, 512, 3)
# Rows of coat and legs drawn below the photograph so that people reach the ground; 1536 rows and
# 512 columns can be halved without a rest. They repeat the photograph's row above the last button.
_PERSON_SHAPE = (1536, 512)
_COAT_ROW = 560
_JPEG_QUALITY = 85
_MAT_HEADER_BYTES = 116  # descriptive text at the start of a MATLAB 5 file
_WIDTH = 1024  # of nearly all pictures of WIDER FACE

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


@dataclass(frozen=True)
class SamplePaths:
    """Where the parts of the sample set lie.

    Attributes:
        root: folder that holds `WIDER_val/images/<event>/<name>.jpg`.
        ground_truth: folder of the four .mat files.
    """

    root: Path
    ground_truth: Path


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


def ensure_sample(directory: Path | str) -> SamplePaths:
    """Make the sample set in `directory` unless it is there already.

    The set is written beside `directory` and renamed into place, so it is there whole or not at
    all, and two processes may do this at the same time. A set of another version is replaced.

    Raises:
        UserError: `directory` holds something else, or cannot be written to, or matplotlib has
            come without its sample data.
    """
    directory = Path(directory).resolve()
    paths = SamplePaths(directory, directory / "ground_truth")
    if not is_complete(directory):
        _refuse_foreign(directory)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with _temporary_sibling(directory) as temporary:
                write_set(temporary, render_set())
                _move_into_place(temporary, directory)
        except OSError as error:
            raise UserError(
                f"cannot write the sample set to {directory}: {error.strerror or error}; "
                "name a folder that can be written to"
            ) from error
    return paths


def is_complete(directory: Path) -> bool:
    """Whether `directory` holds a whole sample set of this version (names, not contents)."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        if marker["version"] != SAMPLE_VERSION:
            return False
        there = sum(1 for _ in (directory / "WIDER_val" / "images").glob("*/*.jpg"))
        mats = [directory / "ground_truth" / name for name in _mat_names()]
        return there == marker["pictures"] and all(mat.is_file() for mat in mats)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_foreign(directory: Path) -> None:
    """Raise UserError where making the set would destroy what somebody else put there."""
    if directory.is_dir():
        foreign = not (directory / MARKER).is_file() and any(directory.iterdir())
    else:
        foreign = directory.exists()
    if foreign:
        raise UserError(
            f"{directory} is there and is not a sample set of this program: "
            "name a new or an empty folder for the sample set, or remove it"
        )


@contextlib.contextmanager
def _temporary_sibling(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory`; gone afterwards, unless it has been renamed."""
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.partial")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, directory: Path) -> None:
    """Rename `temporary` to `directory`, unless another process has been faster."""
    with contextlib.suppress(FileNotFoundError):
        if is_complete(directory):
            return
        _refuse_foreign(directory)
        # An older set steps aside in one rename, so that no moment shows half of each.
        with _temporary_sibling(directory) as aside:
            os.replace(directory, aside / "old")
    try:
        os.replace(temporary, directory)
    except OSError:
        if not is_complete(directory):
            raise
    fsync(directory.parent)


# --- the set on disk ---------------------------------------------------------------------------


def write_set(directory: Path, pictures: Iterator[Picture]) -> None:
    """Write pictures, the four .mat files and, last, the marker into an existing folder."""
    shown = []
    for picture in pictures:
        path = directory / "WIDER_val" / "images" / picture.event / f"{picture.name}.jpg"
        _write(path, encode_jpeg(picture.pixels, _JPEG_QUALITY))
        shown.append((picture.event, picture.name, picture.scene, picture.faces))
    for name, content in mat_files(shown).items():
        _write(directory / "ground_truth" / name, content)
    marker = {"version": SAMPLE_VERSION, "pictures": len(shown)}
    _write(directory / MARKER, json.dumps(marker).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    fsync(path)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """The JPEG file of (h, w, 3) uint8 BGR pixels."""
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


def _mat_names() -> list[str]:
    return ["wider_face_val.mat", *(f"wider_{level}_val.mat" for level in DIFFICULTY_HEIGHTS)]


def mat_files(pictures: Sequence[tuple[str, str, Scene, Faces]]) -> dict[str, bytes]:
    """The four ground-truth files, name to content, as WIDER FACE structures them.

    Args:
        pictures: event, name, scene and faces of each, pictures of an event next to each other.
    """
    events = list(dict.fromkeys(event for event, *_ in pictures))
    by_event = [[picture for picture in pictures if picture[0] == event] for event in events]

    def cells(make: Callable[[str, Scene, Faces], np.ndarray]) -> np.ndarray:
        return _cell([_cell([make(*picture[1:]) for picture in group]) for group in by_event])

    common = {"event_list": _cell([np.array([event]) for event in events])}
    common["file_list"] = cells(lambda name, scene, faces: np.array([name]))
    for field in _labels(pictures[0][2], pictures[0][3]):
        common[field] = cells(lambda name, scene, faces, field=field: _labels(scene, faces)[field])
    files = {"wider_face_val.mat": _mat(common)}
    for level in DIFFICULTY_HEIGHTS:
        lists = cells(lambda name, scene, faces, level=level: _gt_list(faces.counted(level)))
        files[f"wider_{level}_val.mat"] = _mat(common | {"gt_list": lists})
    return files


def _labels(scene: Scene, faces: Faces) -> dict[str, np.ndarray]:
    """Boxes and labels of one picture by the names of their .mat fields.

    A picture without faces gets one box 0 0 0 0, marked invalid: the protocol leaves out a
    picture without any box, and with it the false positives there.
    """
    count = max(len(faces.boxes), 1)

    def column(values: np.ndarray | int) -> np.ndarray:
        full = np.zeros((count, 1), np.uint8)
        full[: len(faces.boxes) or 1, 0] = values if np.size(values) else 0
        return full

    boxes = faces.boxes if len(faces.boxes) else np.zeros((1, 4), np.int32)
    return {
        "face_bbx_list": boxes.astype(np.int32),
        "blur_label_list": column(max([EFFECTS[name].blur for name in scene.effects], default=0)),
        "expression_label_list": column(0),
        "illumination_label_list": column(
            max([EFFECTS[name].illumination for name in scene.effects], default=0)
        ),
        "invalid_label_list": column(0 if len(faces.boxes) else 1),
        "occlusion_label_list": column(faces.occlusion),
        "pose_label_list": column(faces.pose),
    }


def _gt_list(counted: np.ndarray) -> np.ndarray:
    """1-based indices of the true entries as an (n, 1) column of the smallest unsigned type."""
    indices = np.flatnonzero(counted) + 1
    return indices.astype(np.min_scalar_type(len(counted))).reshape(-1, 1)


def _cell(items: list[np.ndarray]) -> np.ndarray:
    """A MATLAB cell column: (n, 1) object array."""
    cell = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        cell[row, 0] = item
    return cell


def _mat(fields: dict[str, np.ndarray]) -> bytes:
    """A MATLAB 5 file without the date and platform that scipy writes into its header."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, dict(sorted(fields.items())), do_compression=True)
    header = f"MATLAB 5.0 MAT-file, cfdist sample set, version {SAMPLE_VERSION}"
    return header.ljust(_MAT_HEADER_BYTES).encode() + buffer.getvalue()[_MAT_HEADER_BYTES:]


# --- pictures ----------------------------------------------------------------------------------


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
        person = _cutout(look.turned)[_level(affine)]
        if look.cover and not look.turned:
            person = _hold_in_front(rng, person, look.cover)
        _paste(canvas, person, affine, look)
        if not look.turned:
            box, seen = clipped_box(face_extent(affine), canvas.shape[:2])
            rows.append((*box, seen, _occlusion_label(look.cover, seen), abs(look.angle) > 15))
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


# --- one person --------------------------------------------------------------------------------


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


def _random_look(rng: np.random.Generator, scene: Scene) -> Look:
    brightness, cloth = rng.uniform(0.8, 1.1), rng.choice([20, 60, 110, 160])
    return Look(
        mirrored=bool(rng.uniform() < 0.5),
        angle=float(rng.uniform(-scene.tilt, scene.tilt)),
        stretch=float(rng.uniform(0.92, 1.08)),
        gamma=float(np.exp(rng.uniform(-0.3, 0.35))),
        gain=_colour(rng, 0.92 * brightness, 1.08 * brightness),
        cloth=_colour(rng, 0.4 * cloth, cloth),
        turned=bool(rng.uniform() < scene.turned),
        cover=_random_cover(rng) if rng.uniform() < scene.covered else None,
    )


def _random_cover(rng: np.random.Generator) -> Cover:
    """A mask or scarf over mouth and chin, a sign over one side, or a bar over the eyes."""
    depth = rng.uniform(0.25, 0.5)
    kinds = [(-0.1, 1 - depth, 1.1, 1.1), (1 - depth, -0.2, 1.3, 1.2), (-0.1, 0.12, 1.1, 0.36)]
    return Cover(kinds[rng.integers(len(kinds))], _colour(rng, 20, 240))


def _colour(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    blue, green, red = rng.uniform(low, high, 3).tolist()
    return blue, green, red


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


def _occlusion_label(cover: Cover | None, seen: float) -> int:
    """WIDER's occlusion label: 1 (partial) from 1 % hidden on, 2 (heavy) above 30 %."""
    hidden = 1 - seen * (1 - (cover.share if cover else 0.0))
    return int(hidden >= 0.01) + int(hidden > 0.3)


@functools.cache
def _photo() -> np.ndarray:
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
def _cutout(turned: bool) -> list[np.ndarray]:
    """The person without the background, at full size and halved again and again.

    Returns:
        (h, w, 5) float32 arrays: blue, green, red 0..255, opacity 0..1, and 0..1 how much of a
        pixel is cloth that can be dyed.
    """
    below = _PERSON_SHAPE[0] - _COAT_ROW
    photo = cv2.copyMakeBorder(_photo()[:_COAT_ROW], 0, below, 0, 0, cv2.BORDER_REPLICATE)
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
    mask = np.zeros(_PERSON_SHAPE, np.float32)
    cv2.fillPoly(mask, [np.array(outline, np.int32)], 1.0)
    return cv2.GaussianBlur(mask, (0, 0), 1.5)


def _face_mask(scale: float) -> np.ndarray:
    """FACE_BOX's ellipse, scaled, but not above the cap's brim: a float32 mask of a person."""
    left, top, width, height = FACE_BOX
    mask = np.zeros(_PERSON_SHAPE, np.float32)
    centre = (round(left + width / 2), round(top + height / 2))
    axes = (round(scale * width / 2), round(scale * height / 2))
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 1.0, -1)
    mask[: int(top)] = 0
    return cv2.GaussianBlur(mask, (0, 0), 3)


def _level(affine: np.ndarray) -> int:
    """Which halving of the cutout to draw from, so that no pixel is skipped on the way down."""
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    return int(np.clip(np.floor(-np.log2(scale)), 0, len(_cutout(False)) - 1))


def _hold_in_front(rng: np.random.Generator, person: np.ndarray, cover: Cover) -> np.ndarray:
    """A copy of a cutout of any level with a cover, a little textured, over its face."""
    scale = person.shape[1] / _PERSON_SHAPE[1]
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


def _paste(canvas: np.ndarray, person: np.ndarray, affine: np.ndarray, look: Look) -> None:
    """Dress a cutout and blend it into a float32 canvas, in place.

    `affine` is in the photograph's pixels, whatever the cutout's level.
    """
    rows, columns = person.shape[:2]
    to_photo = _PERSON_SHAPE[1] / columns
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


# --- backdrops: (rng, height, width) -> (h, w, 3) float32, 0..255 -----------------------------


def _clouds(rng: np.random.Generator, height: int, width: int, coarse: int = 5) -> np.ndarray:
    """Smooth noise of several sizes added up, (h, w, 1) float32, about -1..1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        cells = coarse * 2**octave
        grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total[..., None] / 1.5


def _ramp(height: int, top: Sequence[float], bottom: Sequence[float]) -> np.ndarray:
    """A vertical change from one colour to another, (h, 1, 3) float32."""
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    return (1 - share) * np.float32(top) + share * np.float32(bottom)


def _park(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sky, a line of trees, and a lawn or a square."""
    horizon = int(height * rng.uniform(0.3, 0.45))
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:horizon] = _ramp(horizon, (215, 150, 100), (235, 220, 205))
    canvas[:horizon] += 25 * _clouds(rng, horizon, width)
    ground = np.float32([(60, 120, 95), (130, 140, 150), (90, 130, 160)][rng.integers(3)])
    canvas[horizon:] = _ramp(height - horizon, ground * 1.1, ground * 0.7)
    canvas[horizon:] += 22 * _clouds(rng, height - horizon, width, coarse=20)
    belt = canvas[int(horizon - 0.18 * height) : horizon + 4]
    crowns = (0.1 + 0.05 * _clouds(rng, 1, width)[0, :, 0]) * height
    among = np.arange(len(belt))[:, None] > len(belt) - crowns
    belt[among] = 0.8 * _foliage(rng, len(belt), width)[among] + 20
    return canvas


def _foliage(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Leaves, some of them out of focus."""
    canvas = np.full((height, width, 3), (25, 50, 35), np.uint8)
    for layer in range(3):
        for _ in range(height * width // 900):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            axes = (int(rng.integers(4, 16)), int(rng.integers(2, 8)))
            light = rng.uniform(0.3, 0.6 + 0.2 * layer)
            colour = (light * rng.uniform(20, 90), light * rng.uniform(120, 210), light * 120)
            cv2.ellipse(canvas, centre, axes, int(rng.integers(180)), 0, 360, colour, -1)
        canvas = cv2.GaussianBlur(canvas, (0, 0), 2.2 - layer * 0.8)
    return canvas.astype(np.float32)


def _bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A brick wall."""
    high, long = int(rng.integers(14, 34)), int(rng.integers(40, 90))
    wall = np.float32([(60, 75, 140), (120, 140, 165), (95, 95, 105)][rng.integers(3)])
    canvas = np.full((height, width, 3), wall * 1.35 + 25, np.float32)
    for row, y in enumerate(range(0, height, high)):
        for x in range(-long // 2 * (row % 2), width, long):
            shade = wall * rng.uniform(0.85, 1.1)
            canvas[y : y + high - 2, max(x, 0) : max(x + long - 2, 0)] = shade
    return canvas + 16 * _clouds(rng, height, width) + rng.normal(0, 4, (height, width, 1))


def _facade(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A house with many windows above a street."""
    wall = np.float32(_colour(rng, 110, 200))
    canvas = np.full((height, width, 3), wall, np.float32)
    step_x, step_y = int(rng.integers(50, 110)), int(rng.integers(60, 120))
    street = int(height * 0.48)
    for y in range(step_y // 4, street - step_y // 2, step_y):
        for x in range(step_x // 4, width, step_x):
            glass = np.float32((120, 90, 70)) * rng.uniform(0.4, 1.8)
            frame = canvas[y : y + step_y * 2 // 3, x : x + step_x // 2]
            frame[:] = wall * 0.6
            frame[3:-3, 3:-3] = glass
            frame[3 : step_y // 3, 3:-3] *= rng.uniform(0.8, 1.4)
    canvas[street:] = _ramp(height - street, (105, 105, 105), (80, 85, 90))
    return canvas + 12 * _clouds(rng, height, width) + rng.normal(0, 3, (height, width, 1))


def _with_floor(
    wall: Callable[[np.random.Generator, int, int], np.ndarray],
) -> Callable[[np.random.Generator, int, int], np.ndarray]:
    """A backdrop whose lower half is a paved floor."""

    def backdrop(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        canvas = wall(rng, height, width)
        floor = canvas[height // 2 :]
        stone = rng.uniform(90, 170) * np.float32([0.95, 1, 1.03])
        floor[:] = _ramp(len(floor), stone, stone * 0.75)
        floor += 18 * _clouds(rng, len(floor), width, coarse=16)
        return canvas

    return backdrop


def _curtain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Hanging folds of one colour, as behind a stage."""
    across = np.linspace(0, rng.uniform(60, 160), width, dtype=np.float32)
    bend = np.linspace(0, rng.uniform(0, 1.5), height, dtype=np.float32)[:, None]
    folds = np.sin(across + bend) + 0.5 * np.sin(0.37 * across - bend)
    colour = np.float32(_colour(rng, 40, 150))
    canvas = colour * (1 + 0.25 * folds[..., None]) + 8 * _clouds(rng, height, width)
    return canvas.astype(np.float32)


def _flag(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The photograph's own flag, enlarged and out of focus."""
    corner = np.ascontiguousarray(_photo()[:330, :130][:, :: int(rng.choice([-1, 1]))])
    canvas = cv2.resize(corner, (width, height), interpolation=cv2.INTER_LINEAR)
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(3, 6)).astype(np.float32)
    return canvas * rng.uniform(0.7, 1.1) + 10 * _clouds(rng, height, width)


def _lights(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A city at night, out of focus."""
    canvas = np.full((height, width, 3), (45, 38, 35), np.uint8)
    for _ in range(160):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        glow = rng.uniform(0.3, 1) * np.array([[90, 200, 255], [255, 210, 170], [80, 90, 255]])
        colour = glow[rng.integers(3)].tolist()
        cv2.circle(canvas, centre, int(rng.integers(4, 28)), colour, -1)
    return cv2.GaussianBlur(canvas, (0, 0), 3).astype(np.float32)


BACKDROPS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "park": _park,
    "foliage": _foliage,
    "hedge": _with_floor(_foliage),
    "bricks": _bricks,
    "courtyard": _with_floor(_bricks),
    "facade": _facade,
    "curtain": _curtain,
    "flag": _flag,
    "lights": _lights,
}


# --- what happens to a whole picture: (rng, canvas) -> canvas, both (h, w, 3) float32 ----------


@dataclass(frozen=True)
class Effect:
    """A change to a whole picture, and the blur and illumination labels it brings."""

    apply: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    blur: int = 0
    illumination: int = 0


def _motion(low: int, high: int) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    """The camera moved along a straight line of low to high pixels while the shutter was open."""

    def blur(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
        angle, length = rng.uniform(0, np.pi), int(rng.integers(low, high)) | 1
        along = np.linspace(-(length // 2), length // 2, 4 * length)
        rows, columns = (
            np.rint(length // 2 + along * f(angle)).astype(int) for f in (np.sin, np.cos)
        )
        kernel = np.zeros((length, length), np.float32)
        np.add.at(kernel, (rows, columns), 1)
        return cv2.filter2D(canvas, -1, kernel / kernel.sum())

    return blur


def _defocus(low: float, high: float) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    return lambda rng, canvas: cv2.GaussianBlur(canvas, (0, 0), rng.uniform(low, high))


def _dark(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Too little light: dark, yellowish and noisy."""
    lit = canvas * rng.uniform(0.08, 0.2) * np.float32([0.8, 0.95, 1.1])
    return lit + rng.normal(0, 6, canvas.shape).astype(np.float32)


def _haze(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Fog: little contrast on a bright grey."""
    thickness = rng.uniform(0.6, 0.78) + 0.08 * _clouds(rng, *canvas.shape[:2], coarse=2)
    return canvas * (1 - thickness) + 205 * thickness


def _grain(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    return canvas + rng.normal(0, rng.uniform(8, 16), canvas.shape).astype(np.float32)


def _compress(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """A JPEG of low quality, in which the blocks can be seen."""
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    encoded = np.frombuffer(encode_jpeg(pixels, int(rng.integers(10, 20))), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR).astype(np.float32)


EFFECTS: dict[str, Effect] = {
    "motion": Effect(_motion(9, 18), blur=2),
    "strong motion": Effect(_motion(18, 30), blur=2),
    "defocus": Effect(_defocus(1.2, 2.4), blur=1),
    "strong defocus": Effect(_defocus(4, 7), blur=2),
    "dark": Effect(_dark, illumination=1),
    "haze": Effect(_haze, illumination=1),
    "grain": Effect(_grain),
    "strong compression": Effect(_compress),
}

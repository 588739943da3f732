"""Backdrops and effects of the sample set: what stands behind people, what happens to a picture.

All pictures are (h, w, 3) float32, blue, green, red 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cfdist.widerface.sample_photo import photograph


def random_colour(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    """Blue, green and red, each between low and high."""
    blue, green, red = rng.uniform(low, high, 3).tolist()
    return blue, green, red


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """The JPEG file of (h, w, 3) uint8 BGR pixels."""
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


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
    wall = np.float32(random_colour(rng, 110, 200))
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
    colour = np.float32(random_colour(rng, 40, 150))
    canvas = colour * (1 + 0.25 * folds[..., None]) + 8 * _clouds(rng, height, width)
    return canvas.astype(np.float32)


def _flag(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The photograph's own flag, enlarged and out of focus."""
    corner = np.ascontiguousarray(photograph()[:330, :130][:, :: int(rng.choice([-1, 1]))])
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

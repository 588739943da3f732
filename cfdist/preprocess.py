"""From a picture file to a row of the network's input: pure functions on arrays.

Coordinates: `picture` pixels are those of the stored file (EXIF orientation is ignored, because
the ground truth is); `input` pixels are those of the letterboxed network input.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

# The stored pixels, three 8-bit channels, whatever the file holds (grey, 16 bit, CMYK, palette).
_READ_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

_JPEG_START = b"\xff\xd8"
_JPEG_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
_JPEG_COLORS = frozenset({"Gray", "YCbCr"})  # other JPEGs are left to OpenCV
_MAX_PIXELS = 1 << 30  # OpenCV's CV_IO_MAX_IMAGE_PIXELS: it refuses larger pictures

# In grey levels: more than float32 arithmetic loses, less than another normalisation differs by.
MAX_LEVEL_ERROR = 0.01


class PictureError(Exception):
    """A picture that cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class InputContract:
    """What a model takes as input. A backend states it; preprocessing follows it.

    Attributes:
        height: Rows of the input, pixels.
        width: Columns of the input, pixels.
        batch: Pictures a batch; `None` where the model takes any number.
        dtype: "uint8" (normalisation happens inside the model) or "float32".
        layout: "NHWC" or "NCHW".
        color: "BGR" or "RGB", the order in which the model wants the channels.
        mean: Per channel, in `color` order, subtracted from u8 * scale. Unused for uint8.
        std: Per channel, divided by after the subtraction. Unused for uint8.
        scale: Factor on a u8 value, before the mean: 1/255 or 1. Unused for uint8.
    """

    height: int
    width: int
    batch: int | None
    dtype: Literal["uint8", "float32"] = "uint8"
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    color: Literal["BGR", "RGB"] = "BGR"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0

    @property
    def is_letterboxed_bytes(self) -> bool:
        """Whether the letterboxed picture itself (u8, NHWC, BGR) is the model's input."""
        return (self.dtype, self.layout, self.color) == ("uint8", "NHWC", "BGR")

    def shape(self, pictures: int) -> tuple[int, int, int, int]:
        """The input's shape for a number of pictures."""
        if self.layout == "NHWC":
            return (pictures, self.height, self.width, 3)
        return (pictures, 3, self.height, self.width)


def letterbox_affine(
    picture_width: int, picture_height: int, width: int, height: int
) -> NDArray[np.float64]:
    """The (2, 3) affine that takes picture pixels (x, y) to input pixels.

    One scale for both axes, the largest at which the picture fits, with the picture's centre
    (w/2, h/2) on the input's centre: the CenterNet family's evaluation transform.
    """
    scale = min(width / picture_width, height / picture_height)
    return np.array(
        [
            [scale, 0.0, width / 2 - scale * picture_width / 2],
            [0.0, scale, height / 2 - scale * picture_height / 2],
        ]
    )


def decode_picture(content: bytes) -> NDArray[np.uint8]:
    """Decode a picture file's bytes, in stored orientation.

    Args:
        content: The whole file.

    Returns:
        (h, w, 4) u8: blue, green, red, and a channel whose values mean nothing.

    Raises:
        PictureError: empty, truncated, not a picture, or more than the decoder takes.
    """
    if not content:
        raise PictureError("empty file (0 bytes)")
    # Inside the entropy-coded data a 0xFF is always followed by 0x00 or a restart marker, so an
    # end marker after the last scan's start is the real one. libjpeg would fill what is missing
    # with grey and only warn.
    if content.startswith(_JPEG_START):
        if not content.endswith(_JPEG_END) and content.rfind(_JPEG_END) < content.rfind(_JPEG_SCAN):
            raise PictureError("truncated JPEG (no end marker after the last scan)")
        with contextlib.suppress(ValueError):  # a damaged file: OpenCV decides what it is
            height, width, color, _ = simplejpeg.decode_jpeg_header(content)
            if color in _JPEG_COLORS and height * width <= _MAX_PIXELS:
                # In 7/8 of the time of `cv2.imdecode`, with the same values: both hand the work to
                # libjpeg-turbo with the same settings.
                return np.asarray(simplejpeg.decode_jpeg(content, "BGRX"), np.uint8)
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), _READ_FLAGS)
    except cv2.error as error:
        raise PictureError(f"cannot be decoded: {_reason(error)}") from None
    if picture is None:
        raise PictureError("not a picture that OpenCV can decode")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA), np.uint8)


def letterbox_into(picture: NDArray[np.uint8], row: NDArray[np.uint8]) -> None:
    """Letterbox a picture into `row`, one picture's place in a batch, black borders included.

    Only the band that the picture covers is interpolated; the rest is filled with zeros. OpenCV
    warps four channels to the same values in half the time of three.

    Args:
        picture: (h, w, 4) u8, as `decode_picture` returns it.
        row: (H, W, 3) u8, C-contiguous, overwritten whole.

    Raises:
        PictureError: too large for OpenCV (releases before 5 take up to 32,767 pixels a side).
    """
    height, width = row.shape[:2]
    affine = letterbox_affine(picture.shape[1], picture.shape[0], width, height)
    # Bilinear interpolation fades into the border over one picture pixel on each side.
    fade = ceil(affine[1, 1]) + 1
    top = max(0, floor(affine[1, 2]) - fade)
    bottom = min(height, ceil(affine[1, 2] + affine[1, 1] * picture.shape[0]) + fade)
    row[:top] = 0
    row[bottom:] = 0
    band = affine.copy()
    band[1, 2] -= top
    try:
        letterboxed = cv2.warpAffine(picture, band, (width, bottom - top), flags=cv2.INTER_LINEAR)
        cv2.cvtColor(letterboxed, cv2.COLOR_BGRA2BGR, dst=row[top:bottom])
    except cv2.error as error:
        raise PictureError(
            f"{picture.shape[1]}x{picture.shape[0]} pixels cannot be letterboxed: {_reason(error)}"
        ) from None


def read_into(path: str, row: NDArray[np.uint8]) -> tuple[int, int]:
    """Read, decode and letterbox one picture file into its place in a batch.

    Args:
        path: The picture file.
        row: (H, W, 3) u8, C-contiguous; its content is undefined after an error.

    Returns:
        The picture's width and height in pixels.

    Raises:
        PictureError: the file cannot be read or is not a usable picture.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror or error}") from None
    picture = decode_picture(content)
    letterbox_into(picture, row)
    return picture.shape[1], picture.shape[0]


def to_model_input(
    letterboxed: NDArray[np.uint8], contract: InputContract, out: NDArray[np.generic] | None = None
) -> NDArray[np.generic]:
    """Letterboxed pictures to the model's own input.

    Args:
        letterboxed: (n, H, W, 3) u8, BGR.
        contract: What the model wants.
        out: An array of `contract.shape(n)` and dtype to write into; made where `None`.

    Returns:
        C-contiguous array of `contract.shape(n)`; `letterboxed` itself if the model takes it as it
        is and `out` is `None`.
    """
    if contract.is_letterboxed_bytes and out is None:
        return letterboxed
    if out is None:
        out = np.empty(contract.shape(len(letterboxed)), contract.dtype)
    channels_last = out if contract.layout == "NHWC" else out.transpose(0, 2, 3, 1)
    ordered = letterboxed if contract.color == "BGR" else letterboxed[..., ::-1]
    for channel in range(3):
        source = ordered[..., channel]
        target = channels_last[..., channel]
        if contract.dtype == "uint8":
            target[...] = source
        else:
            # In this order, in float32: (u8 * scale - mean) / std, as the training code did.
            np.multiply(source, np.float32(contract.scale), out=target, dtype=np.float32)
            if contract.mean[channel] or contract.std[channel] != 1.0:
                np.subtract(target, np.float32(contract.mean[channel]), out=target)
                np.divide(target, np.float32(contract.std[channel]), out=target)
    return out


def to_letterboxed(inputs: NDArray[np.float32], contract: InputContract) -> NDArray[np.uint8]:
    """Undo `to_model_input`: exactly the letterboxed pictures that a float32 input was made from.

    Args:
        inputs: Array of `contract.shape(n)`, float32.
        contract: How it was made; float32.

    Returns:
        (n, H, W, 3) u8, BGR.

    Raises:
        ValueError: the values are not those of pictures under this contract.
    """
    channels_last = inputs if contract.layout == "NHWC" else inputs.transpose(0, 2, 3, 1)
    letterboxed = np.empty(channels_last.shape, np.uint8)
    ordered = letterboxed if contract.color == "BGR" else letterboxed[..., ::-1]
    for channel in range(3):
        values = channels_last[..., channel] * np.float32(contract.std[channel])
        values += np.float32(contract.mean[channel])
        values /= np.float32(contract.scale)
        levels = np.rint(values)
        apart = np.abs(values - levels).max(initial=0)
        if not (apart < MAX_LEVEL_ERROR and levels.min() >= 0 and levels.max() <= 255):
            raise ValueError(
                "its values are not those of a picture under this model's color, scale, mean "
                "and std"
            )
        ordered[..., channel] = levels
    return letterboxed


def _reason(error: cv2.error) -> str:
    return " ".join(str(getattr(error, "err", "") or error).split())

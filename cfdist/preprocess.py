"""From a picture file to a row of the network's input: pure functions on arrays.

Coordinates: `picture` pixels are those of the stored file (EXIF orientation is ignored, as the
ground truth ignores it), unless an upright picture is asked for; `input` pixels are those of the
network's input, which is the letterboxed picture or the stretched one.
"""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cfdist import storage

# The stored pixels, three 8-bit channels, whatever the file holds (grey, 16 bit, CMYK, palette).
_READ_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_JPEG_COLORS = frozenset({"Gray", "YCbCr"})  # other JPEGs are left to OpenCV
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a frame's header

# What may be behind the name of a JPEG, beside one.
_OTHER_FORMATS = ("PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF", "PPM", "SUN")

# A larger picture is refused from its header. Decoded it has 4 bytes a pixel, in each reader
# thread, and from 2^31 bytes on OpenCV's warpAffine ends the process.
MAX_PIXELS = 1 << 28

# The sides of a network's input are multiples of this, both published networks.
SIDE = 32

# In grey levels: more than float32 arithmetic loses, less than another normalisation differs by.
MAX_LEVEL_ERROR = 0.01


_ORIENTATION = 0x0112  # the number of the EXIF tag

UNREADABLE = "cannot be read: "  # begins the reason where it is not the picture's content


class PictureError(Exception):
    """A picture that cannot be used; the message is the reason, without the file's name.

    Attributes:
        damage: What is damaged in the file, if that is why.
    """

    def __init__(self, reason: str, damage: str | None = None) -> None:
        super().__init__(reason)
        self.damage = damage


class DamagedPictureError(PictureError):
    """A picture of which a decoder makes something, but not what its maker saw."""

    def __init__(self, damage: str) -> None:
        super().__init__(damage, damage)


@dataclass(frozen=True)
class StoredPicture:
    """What is known of a picture that was read.

    Attributes:
        size: Width and height as stored, pixels.
        damage: What is wrong with the file; `None` if nothing is.
    """

    size: tuple[int, int]
    damage: str | None = None


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


@dataclass(frozen=True)
class View:
    """How a picture is shown to the network: at a scale, and mirrored or not.

    Attributes:
        scale: A factor of the picture's own size; from `SIDE` on the pixels of its short side.
        is_mirrored: Whether left and right are exchanged.
    """

    scale: float = 1.0
    is_mirrored: bool = False

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture at the scale, whole pixels.

        >>> View(500).scaled(1024, 683), View(0.5).scaled(1024, 683)
        ((750, 500), (512, 342))
        """
        factor = self.scale if self.scale < SIDE else self.scale / min(width, height)
        return max(1, round(width * factor)), max(1, round(height * factor))

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the input that a picture fills: the next multiples of `SIDE`.

        >>> View().input_size(1024, 683)
        (1024, 704)
        """
        across, down = self.scaled(width, height)
        return -(-across // SIDE) * SIDE, -(-down // SIDE) * SIDE


PLAIN = View()  # a picture as it is


def stretch_affine(
    picture_width: int, picture_height: int, width: int, height: int
) -> NDArray[np.float64]:
    """The (2, 3) affine that takes points of the picture to those of an input that it fills."""
    return np.array([[width / picture_width, 0.0, 0.0], [0.0, height / picture_height, 0.0]])


def stretch_into(
    picture: NDArray[np.uint8], row: NDArray[np.uint8], is_mirrored: bool = False
) -> None:
    """Resize a picture to the size of `row`, each axis by its own factor.

    Args:
        picture: (h, w, 4) u8, as `decode_picture` returns it.
        row: (H, W, 3) u8, C-contiguous, overwritten whole.
        is_mirrored: Exchange left and right.
    """
    height, width = row.shape[:2]
    if picture.shape[:2] != (height, width):
        picture = np.asarray(cv2.resize(picture, (width, height)), np.uint8)
    if is_mirrored:
        picture = np.asarray(cv2.flip(picture, 1), np.uint8)
    cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR, dst=row)


def size_in_header(content: bytes) -> tuple[int, int] | None:
    """Width and height that a picture file's beginning tells; `None` if it tells no usable ones."""
    size = None
    if content.startswith(_JPEG_START):
        size = _jpeg_size(content)
    else:
        from PIL import Image  # seldom needed

        Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower, and gives a warning
        with contextlib.suppress(Exception):  # Pillow's readers raise nearly anything
            size = Image.open(io.BytesIO(content), formats=_OTHER_FORMATS).size
    return size if size and 0 < size[0] * size[1] <= MAX_PIXELS else None


def decode_picture(content: bytes) -> NDArray[np.uint8]:
    """Decode a picture file's bytes, in stored orientation.

    Bytes after the picture's end, such as a second picture or a film, are not looked at.

    Args:
        content: The whole file.

    Returns:
        (h, w, 4) u8: blue, green, red, and a channel whose values mean nothing.

    Raises:
        DamagedPictureError: truncated, or the decoder warns: a part of the picture is not right.
        PictureError: empty, not a picture, or of more than `MAX_PIXELS`.
    """
    if not content:
        raise PictureError("empty file (0 bytes)")
    if not content.startswith(_JPEG_START):
        _check_other_format(content)
        return _decode_with_opencv(content)
    _check_size(_jpeg_size(content))
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(content)
        _check_size((width, height))
        if color in _JPEG_COLORS:
            # In 7/8 of the time of `cv2.imdecode`, with the same values: both hand the work to
            # libjpeg-turbo with the same settings. But OpenCV keeps libjpeg's warnings to itself.
            return np.asarray(simplejpeg.decode_jpeg(content, "BGRX"), np.uint8)
        simplejpeg.decode_jpeg(content, "BGR" if color == "RGB" else "CMYK")  # for its warnings
    except (ValueError, KeyError) as error:  # KeyError: -1 is a colour that it does not know
        raise DamagedPictureError(f"damaged or unusual JPEG: {_words(error)}") from None
    return _decode_with_opencv(content)


def decode_damaged_picture(content: bytes) -> NDArray[np.uint8]:
    """What a decoder makes of a content that `decode_picture` refuses as damaged.

    Raises:
        PictureError: nothing.
    """
    if content.startswith(_JPEG_START):
        size = _jpeg_size(content)
        try:
            height, width, color, _ = simplejpeg.decode_jpeg_header(content, strict=False)
            size = (width, height)
            _check_size(size)
            if color in _JPEG_COLORS:
                picture = simplejpeg.decode_jpeg(content, "BGRX", strict=False)
                return np.asarray(picture, np.uint8)
        except (ValueError, KeyError):
            pass  # of a sampling that only OpenCV knows?
        if size is None:
            raise PictureError("damaged JPEG without a size")
        _check_size(size)
        content += _JPEG_END  # without one, OpenCV gives nothing
    return _decode_with_opencv(content)


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG; `None` if the header breaks off before them.

    libjpeg gives no size before it has read all tables after it.
    """
    at = len(_JPEG_START)
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker, length, _, height, width = struct.unpack_from(">BHBHH", content, at + 1)
        if marker in _JPEG_FRAMES:
            return width, height
        at += 1 if marker == 0xFF else 2 + length
    return None


def _check_size(size: tuple[int, int] | None) -> None:
    if size and size[0] * size[1] > MAX_PIXELS:
        raise PictureError(
            f"{size[0]}x{size[1]} pixels are more than the {MAX_PIXELS} that a picture may have"
        )


def _check_other_format(content: bytes) -> None:
    """Refuse what is too large, or that Pillow finds damaged: OpenCV fills what is missing.

    Raises:
        DamagedPictureError: truncated, a checksum is wrong, or data cannot be decoded.
        PictureError: not a picture in one of `_OTHER_FORMATS`, or of more than `MAX_PIXELS`.
    """
    from PIL import Image  # seldom needed

    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit gives a warning in the middle of a run
    try:
        picture = Image.open(io.BytesIO(content), formats=_OTHER_FORMATS)
    except Exception:  # Pillow's readers raise nearly anything
        raise PictureError("not a picture that can be decoded") from None
    _check_size(picture.size)
    try:
        picture.verify()  # the checksums of a PNG; nothing can be read after it
        Image.open(io.BytesIO(content), formats=_OTHER_FORMATS).load()
    except Exception as error:
        raise DamagedPictureError(f"damaged {picture.format}: {_words(error)}") from None


def _decode_with_opencv(content: bytes) -> NDArray[np.uint8]:
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), _READ_FLAGS)
    except cv2.error as error:
        raise PictureError(f"cannot be decoded: {_words(error)}") from None
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
            f"{picture.shape[1]}x{picture.shape[0]} pixels cannot be letterboxed: {_words(error)}"
        ) from None


def read_into(
    path: str, row: NDArray[np.uint8], use_damaged: bool = False, is_upright: bool = False
) -> StoredPicture:
    """Read, decode and letterbox one picture file into its place in a batch.

    Args:
        path: The picture file, or its place in a store (`cfdist.storage`).
        row: (H, W, 3) u8, C-contiguous; its content is undefined after an error.
        use_damaged: Take what a decoder makes of a damaged file.
        is_upright: Turn the picture as its EXIF orientation says.

    Raises:
        DamagedPictureError: the file is damaged, unless that is to be used.
        PictureError: the file cannot be read or is not a usable picture.
    """
    return decode_into(picture_content(path), row, use_damaged, is_upright)


def picture_content(path: str) -> bytes:
    """The content of a picture file, or of one in a store.

    Raises:
        PictureError: it cannot be read.
    """
    try:
        return storage.read(path)
    except OSError as error:
        raise PictureError(f"{UNREADABLE}{error.strerror or error}") from None


def is_readable(path: str) -> bool:
    """Whether this process can read a picture file; what it holds does not matter."""
    try:
        picture_content(path)
    except PictureError:
        return False
    return True


def decode_into(
    content: bytes, row: NDArray[np.uint8], use_damaged: bool = False, is_upright: bool = False
) -> StoredPicture:
    """`read_into` for the content of a picture file."""
    picture = decode_stored(content, use_damaged, is_upright)
    letterbox_into(picture.pixels, row)
    return StoredPicture(picture.size, picture.damage)


@dataclass(frozen=True)
class DecodedPicture:
    """A picture's pixels, (h, w, 4) u8 as `decode_picture` gives them, and what is damaged."""

    pixels: NDArray[np.uint8]
    damage: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def decode_stored(content: bytes, use_damaged: bool, is_upright: bool) -> DecodedPicture:
    """Decode a picture file's content; the arguments and errors are those of `read_into`."""
    damage = None
    try:
        picture = decode_picture(content)
    except DamagedPictureError as error:
        if not use_damaged:
            raise
        picture, damage = decode_damaged_picture(content), str(error)
    return DecodedPicture(_upright(picture, content) if is_upright else picture, damage)


def _upright(picture: NDArray[np.uint8], content: bytes) -> NDArray[np.uint8]:
    """A picture as viewers show it: mirrored and turned as the EXIF orientation says."""
    from PIL import Image  # few runs need it

    try:
        opened = Image.open(io.BytesIO(content))
        orientation = opened.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's readers raise nearly anything
        return picture
    if opened.format == "TIFF":  # OpenCV has turned it, whatever it was told
        return picture
    if orientation in (5, 6, 7, 8):
        picture = np.asarray(cv2.transpose(picture), np.uint8)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation or 1)
    return picture if flip is None else np.asarray(cv2.flip(picture, flip), np.uint8)


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


def _words(error: Exception) -> str:
    """What a decoder says, on one line."""
    return " ".join(str(getattr(error, "err", "") or error).split()) or type(error).__name__

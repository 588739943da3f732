"""Letterboxing, decoding and normalisation against the goldens and against plain OpenCV."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist import preprocess
from cfdist.preprocess import (
    MAX_PIXELS,
    DamagedPictureError,
    InputContract,
    PictureError,
    StoredPicture,
    View,
    decode_damaged_picture,
    decode_picture,
    letterbox_affine,
    letterbox_into,
    read_into,
    size_in_header,
    stretch_affine,
    stretch_into,
    to_letterboxed,
    to_model_input,
)

# Mean, std, scale. The golden `normalized_sample` was made with these, rounded to three digits;
# the model's own are in conf/model/centerface_pytorch.yaml.
PYTORCH_VALUES = ((0.408, 0.447, 0.470), (0.289, 0.274, 0.278), 1 / 255)
PYTORCH_CONTRACT = InputContract(800, 800, None, "float32", "NCHW", "BGR", *PYTORCH_VALUES)


JPEG_SAMPLINGS = {
    "4:4:4": 0x111111,
    "4:2:2": 0x211111,
    "4:2:0": 0x221111,
    "4:4:0": 0x121111,
    "4:1:1": 0x411111,
}


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def four_channels(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)


def encode(picture: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_real_pictures_warp_like_the_reference(shared, number):
    golden = np.load(shared / "golden" / f"decode_{number}.npz")
    images = shared / "data" / "wider_val_mini" / "WIDER_val" / "images"
    row = np.full((800, 800, 3), 99, np.uint8)

    size = read_into(str(images / str(golden["event"]) / str(golden["image"])), row).size

    assert size == (golden["width"], golden["height"])
    np.testing.assert_allclose(
        letterbox_affine(*size, 800, 800), golden["affine"], rtol=0, atol=1e-4
    )
    reference = cv2.imread(str(shared / "golden" / f"warped_{number}.png"))
    assert np.abs(row.astype(int) - reference).max() <= 1


@pytest.mark.parametrize("number", [0, 1, 2])
def test_normalisation_is_the_reference_s(shared, number):
    golden = np.load(shared / "golden" / f"decode_{number}.npz")
    warped = cv2.imread(str(shared / "golden" / f"warped_{number}.png"))

    normalised = to_model_input(warped[None], PYTORCH_CONTRACT)

    assert normalised.dtype == np.float32
    assert normalised.flags.c_contiguous
    np.testing.assert_allclose(
        normalised[0, :, ::40, ::40], golden["normalized_sample"], rtol=0, atol=1e-6
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_band_warp_equals_the_whole_warp(height, width):
    picture = random_picture(height, width, height * 1000 + width)
    row = np.full((96, 96, 3), 123, np.uint8)

    letterbox_into(four_channels(picture), row)

    affine = letterbox_affine(width, height, 96, 96)
    whole = cv2.warpAffine(picture, affine, (96, 96), flags=cv2.INTER_LINEAR)
    assert np.abs(row.astype(int) - whole).max() <= 1


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([33, 96, 320]))
def test_four_channels_are_warped_to_the_same_values_as_three(height, width, size):
    picture = random_picture(height, width, height * 1000 + width)
    affine = letterbox_affine(width, height, size, size)
    three = cv2.warpAffine(picture, affine, (size, size), flags=cv2.INTER_LINEAR)
    padded = np.dstack([picture, random_picture(height, width)[..., :1]])
    four = cv2.warpAffine(padded, affine, (size, size), flags=cv2.INTER_LINEAR)

    np.testing.assert_array_equal(four[..., :3], three)

    rows = np.full((2, size, size, 3), 123, np.uint8)
    letterbox_into(four_channels(picture), rows[0])
    letterbox_into(padded, rows[1])
    np.testing.assert_array_equal(rows[0], rows[1])


@given(st.integers(1, 20000), st.integers(1, 20000))
def test_letterbox_centres_and_fits(width, height):
    affine = letterbox_affine(width, height, 800, 800)
    corners = affine @ np.array([[0, width, width / 2], [0, height, height / 2], [1, 1, 1]])
    np.testing.assert_allclose(corners[:, 2], [400, 400], atol=1e-6)
    assert corners.min() >= -1e-6
    assert corners.max() <= 800 + 1e-6
    assert max(corners[0, 1] - corners[0, 0], corners[1, 1] - corners[1, 0]) == pytest.approx(800)


def test_letterbox_of_an_oblong_input_fits_too():
    affine = letterbox_affine(100, 100, 640, 320)
    assert affine[0, 0] == affine[1, 1] == 3.2
    np.testing.assert_allclose(affine @ [50, 50, 1], [320, 160])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"this is no picture", "not a picture"),
        (encode(random_picture(64, 64))[:-40], "damaged or unusual JPEG: .*[Pp]remature end"),
        (encode(random_picture(64, 64))[:30], "damaged or unusual JPEG"),
        (b"\xff\xd8", "damaged or unusual JPEG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not a picture"),
    ],
    ids=["empty", "text", "cut short", "header only", "start only", "broken PNG"],
)
def test_unusable_files_give_their_reason(content, reason):
    with pytest.raises(PictureError, match=reason):
        decode_picture(content)


JPEG_KINDS = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restart markers": [cv2.IMWRITE_JPEG_RST_INTERVAL, 4],
    "4:4:4": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111],
}


@pytest.fixture(params=[*JPEG_KINDS, "grey", "CMYK"])
def jpeg(request) -> bytes:
    """A JPEG of 160x120 pixels with some thousand bytes of data."""
    picture = cv2.blur(random_picture(120, 160), (3, 3))
    if request.param == "grey":
        return encode(picture[..., 0])
    if request.param == "CMYK":
        return cmyk_jpeg(np.dstack([picture, picture[..., :1]]))
    return cv2.imencode(".jpg", picture, JPEG_KINDS[request.param])[1].tobytes()


def cmyk_jpeg(picture: np.ndarray) -> bytes:
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image.fromarray(picture, "CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def zeroed(content: bytes) -> bytes:
    middle = len(content) * 2 // 3
    return content[:middle] + bytes(400) + content[middle + 400 :]


def with_early_end(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3] + b"\xff\xd9"


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def without_end(content: bytes) -> bytes:
    return content[:-2]


@pytest.mark.parametrize("damage", [zeroed, with_early_end, cut, without_end])
def test_a_damaged_jpeg_is_a_failure_or_used_and_told(jpeg, damage, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(damage(jpeg))
    row = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(DamagedPictureError, match="damaged or unusual JPEG: ") as caught:
        read_into(str(path), row)
    used = read_into(str(path), row, use_damaged=True)
    assert used == StoredPicture((160, 120), str(caught.value))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    expected = np.zeros_like(row)
    content = np.frombuffer(path.read_bytes() + b"\xff\xd9", np.uint8)
    letterbox_into(four_channels(cv2.imdecode(content, flags)), expected)
    np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize(
    "trailer",
    [b"\0" * 100, b"\0" * 24 + b"\xff\xda" + b"x" * 50, b"\xff\xd9", b"ftypmp42" * 9],
    ids=["zeros", "like a scan", "a second end", "a film"],
)
def test_bytes_after_a_whole_jpeg_are_not_looked_at(jpeg, trailer):
    whole = decode_picture(jpeg)
    np.testing.assert_array_equal(decode_picture(jpeg + trailer), whole)
    np.testing.assert_array_equal(decode_picture(jpeg + cut(jpeg)), whole)
    with pytest.raises(DamagedPictureError):
        decode_picture(cut(jpeg) + jpeg)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tiff", ".webp", ".jp2", ".ppm"])
def test_other_formats_are_read_whole_or_refused(suffix):
    picture = cv2.blur(random_picture(60, 90), (3, 3))
    content = encode(picture, suffix)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    expected = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    np.testing.assert_array_equal(decode_picture(content)[..., :3], expected)
    np.testing.assert_array_equal(decode_picture(content + b"x" * 50)[..., :3], expected)
    for size in (len(content) // 2, len(content) - 20):
        with pytest.raises(PictureError):
            decode_picture(content[:size])


@pytest.mark.parametrize("at", ["data", "checksum"])
def test_a_flipped_bit_in_a_png_is_found_by_its_checksum(at, tmp_path):
    content = bytearray(encode(random_picture(20, 30), ".png"))
    end = content.index(b"IEND") - 8  # of the data; four bytes of checksum follow
    content[end - 100 if at == "data" else end + 1] ^= 1
    with pytest.raises(DamagedPictureError, match="damaged PNG: "):
        decode_picture(bytes(content))


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100_000))
    parts = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (body, data, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_header(width: int, height: int, size: int | None = None) -> bytes:
    content = bytearray(encode(random_picture(64, 64)))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content[:size]) + b"\xff\xd9"


@pytest.mark.parametrize("decode", [decode_picture, decode_damaged_picture])
@pytest.mark.parametrize("size", [None, 200])
def test_a_jpeg_of_too_many_pixels_is_refused_from_its_header(decode, size):
    with pytest.raises(PictureError, match=f"30000x30000 pixels are more than the {MAX_PIXELS}"):
        decode(jpeg_header(30000, 30000, size))


def test_a_png_of_too_many_pixels_is_refused_from_its_header():
    with pytest.raises(PictureError, match=f"30000x30000 pixels are more than the {MAX_PIXELS}"):
        decode_picture(png_header(30000, 30000))
    with pytest.raises(DamagedPictureError):
        decode_picture(png_header(3000, 3000))


def test_a_picture_at_the_limit_is_letterboxed(monkeypatch):
    content = encode(np.full((40, 1000, 3), 200, np.uint8))
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 40_000)
    assert decode_picture(content).shape == (40, 1000, 4)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 39_999)
    with pytest.raises(PictureError, match="1000x40 pixels are more than the 39999"):
        decode_picture(content)


def test_a_grey_jpeg_of_any_sampling_is_whole():
    content = bytearray(encode(random_picture(64, 64)[..., 0]))
    content[content.index(b"\xff\xc0") + 11] = 0x22  # alone, a component has no other to fit
    assert_decodes_like_opencv(bytes(content))


def test_a_colour_jpeg_of_a_sampling_that_cannot_be_checked_is_no_silent_guess():
    content = bytearray(encode(random_picture(64, 64)))
    content[content.index(b"\xff\xc0") + 11] = 0x31
    with pytest.raises(DamagedPictureError, match="unusual"):
        decode_picture(bytes(content))
    assert decode_damaged_picture(bytes(content)).shape == (64, 64, 4)


def test_grey_and_16_bit_pictures_become_three_8_bit_channels():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = decode_picture(encode(grey, ".png"))
    np.testing.assert_array_equal(decoded[..., :3], np.repeat(grey[..., None], 3, axis=2))

    deep = grey.astype(np.uint16) * 257
    decoded = decode_picture(encode(deep, ".png"))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded[..., 0].astype(int) - grey).max() <= 1


def assert_decodes_like_opencv(content: bytes) -> None:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = decode_picture(content)
    assert decoded.shape[2] == 4
    reference = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    np.testing.assert_array_equal(decoded[..., :3], reference)


def test_a_png_decodes_to_opencv_s_very_bytes():
    assert_decodes_like_opencv(encode(random_picture(20, 30), ".png"))


def test_exif_orientation_is_ignored():
    jpeg = encode(random_picture(20, 40))
    # An EXIF block that says "rotate by 90 degrees": TIFF header, one entry, orientation 6.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    rotated = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR).shape == (40, 20, 3)

    assert decode_picture(rotated).shape == (20, 40, 4)


def test_a_cmyk_jpeg_is_read(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow writes the CMYK file")
    path = tmp_path / "cmyk.jpg"
    image.new("CMYK", (40, 20), (0, 255, 255, 0)).save(path)

    picture = decode_picture(path.read_bytes())

    assert picture.shape == (20, 40, 4)
    blue, green, red = picture[10, 20, :3]
    assert red > 200 > 100 > max(blue, green)


def test_a_picture_that_opencv_cannot_warp_gives_its_reason(monkeypatch):
    def refuse(*_, **__):
        raise cv2.error("too large")

    monkeypatch.setattr(cv2, "warpAffine", refuse)
    with pytest.raises(PictureError, match="30x20 pixels cannot be letterboxed: too large"):
        letterbox_into(four_channels(random_picture(20, 30)), np.zeros((64, 64, 3), np.uint8))


def test_what_cannot_be_read_gives_its_reason(tmp_path):
    row = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(PictureError, match="cannot be read: No such file"):
        read_into(str(tmp_path / "none.jpg"), row)
    with pytest.raises(PictureError, match="cannot be read: is a folder, not a file"):
        read_into(str(tmp_path), row)
    with pytest.raises(PictureError, match="cannot be read: is a device, not a file"):
        read_into("/dev/zero", row)


def test_contract_layouts_and_colours():
    warped = random_picture(32, 64)[None]
    same = InputContract(32, 64, None)
    assert to_model_input(warped, same) is warped

    rgb = to_model_input(warped, InputContract(32, 64, None, "uint8", "NCHW", "RGB"))
    np.testing.assert_array_equal(rgb, warped[..., ::-1].transpose(0, 3, 1, 2))

    out = np.empty((1, 3, 32, 64), np.float32)
    contract = InputContract(
        32, 64, None, "float32", "NCHW", "RGB", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0.5
    )
    assert to_model_input(warped, contract, out) is out
    expected = (warped[..., ::-1] * 0.5 - np.array([1, 2, 3])) / np.array([4, 5, 6])
    np.testing.assert_allclose(out, expected.transpose(0, 3, 1, 2), rtol=1e-6)


@settings(max_examples=30)
@given(
    st.sampled_from(["BGR", "RGB"]),
    st.sampled_from(["NCHW", "NHWC"]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_warped_pictures_come_back_exactly(color, layout, raw, seed):
    values = ((0.0,) * 3, (1.0,) * 3, 1.0) if raw else PYTORCH_VALUES
    contract = InputContract(16, 32, None, "float32", layout, color, *values)
    warped = np.stack([random_picture(16, 32, seed), random_picture(16, 32, seed + 1)])
    np.testing.assert_array_equal(
        to_letterboxed(to_model_input(warped, contract), contract), warped
    )


def test_floats_of_another_normalisation_are_refused():
    warped = random_picture(16, 32)[None]
    raw = InputContract(16, 32, None, "float32", "NCHW", "BGR")
    normalised = InputContract(16, 32, None, "float32", "NCHW", "BGR", *PYTORCH_VALUES)
    with pytest.raises(ValueError, match="not those of a picture"):
        to_letterboxed(to_model_input(warped, normalised), raw)
    with pytest.raises(ValueError, match="not those of a picture"):
        to_letterboxed(to_model_input(warped, raw), normalised)
    with pytest.raises(ValueError, match="not those of a picture"):
        to_letterboxed(np.full((1, 3, 16, 32), np.nan, np.float32), raw)


@settings(max_examples=60)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    quality=st.integers(1, 100),
    sampling=st.sampled_from(sorted(JPEG_SAMPLINGS.values())),
    progressive=st.booleans(),
    restart=st.integers(0, 3),
    grey=st.booleans(),
    seed=st.integers(0, 99),
)
def test_jpegs_decode_to_opencv_s_very_bytes(
    height, width, quality, sampling, progressive, restart, grey, seed
):
    picture = cv2.blur(random_picture(height, width, seed), (3, 3))
    flags = [
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling,
        cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive),
        cv2.IMWRITE_JPEG_RST_INTERVAL, restart,
    ]  # fmt: skip
    content = cv2.imencode(".jpg", picture[..., 0] if grey else picture, flags)[1].tobytes()
    assert_decodes_like_opencv(content)


@pytest.mark.slow
def test_real_jpegs_decode_to_opencv_s_very_bytes(shared):
    paths = sorted((shared / "data" / "wider_val_mini" / "WIDER_val" / "images").rglob("*.jpg"))
    for path in paths[::20]:
        assert_decodes_like_opencv(path.read_bytes())


def test_a_jpeg_of_four_channels_is_opencv_s_to_decode():
    image = pytest.importorskip("PIL.Image", reason="Pillow writes the CMYK picture")
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 4), np.uint8)
    buffer = io.BytesIO()
    image.fromarray(picture, "CMYK").save(buffer, "JPEG")
    assert_decodes_like_opencv(buffer.getvalue())


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_an_upright_picture_is_as_viewers_show_it(orientation, kind):
    """Pillow's own turning is the reference; the pixels as stored stay the default."""
    from PIL import Image, ImageOps

    levels = np.kron([[0, 60, 120], [180, 240, 30]], np.ones((16, 16))).astype(np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    if orientation or kind != "TIFF":
        exif[0x0112] = orientation
    Image.fromarray(levels).convert("RGB").save(file, kind, exif=exif)
    content = file.getvalue()
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    found = preprocess.decode_stored(content, use_damaged=False, is_upright=True).pixels
    np.testing.assert_allclose(found[..., 2::-1], np.asarray(upright), atol=3)
    row = np.empty((64, 64, 3), np.uint8)
    stored = preprocess.decode_into(content, row, is_upright=True)
    assert stored.size == upright.size
    if kind != "TIFF":
        assert preprocess.decode_into(content, row).size == (48, 32)


@given(st.integers(1, 20000), st.integers(1, 20000))
def test_an_own_size_is_the_next_multiple_of_32(width, height):
    for side, found in zip((width, height), View().input_size(width, height), strict=True):
        assert found % 32 == 0
        assert 0 <= found - side < 32
    corner = stretch_affine(width, height, *View().input_size(width, height)) @ [width, height, 1]
    np.testing.assert_allclose(corner, View().input_size(width, height), rtol=1e-12)


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_a_stretched_picture_fills_its_input(size):
    picture = random_picture(*size)
    row = np.zeros((64, 96, 3), np.uint8)
    stretch_into(four_channels(picture), row)
    np.testing.assert_array_equal(row, cv2.resize(picture, (96, 64)))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_size_is_in_a_file_s_beginning(suffix):
    content = encode(random_picture(90, 200), suffix)
    assert size_in_header(content[: len(content) // 2]) == (200, 90)
    assert size_in_header(content[:4]) is None


def test_a_large_picture_s_header_tells_its_size_without_a_warning(recwarn):
    assert size_in_header(png_header(16000, 16000)) == (16000, 16000)
    assert not recwarn.list


def test_a_header_with_too_many_pixels_tells_no_size():
    assert size_in_header(jpeg_header(30000, 20000)) is None
    assert size_in_header(png_header(30000, 20000)) is None

"""The workflow's steps without a device: picture sizes, and what fails in a block."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist.errors import UserError
from cfdist.preprocess import PictureError, decode_picture
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import RawOutput, input_contract, output_names, output_shapes, write_raw
from cfdist.workflow.stages import picture_size, write_inputs, write_prediction

ORIENTATION_6 = (  # an EXIF segment that says: turn by 90 degrees
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
)


def jpeg(width: int, height: int, progressive: bool = False, grey: bool = False) -> bytes:
    picture = np.full((height, width) if grey else (height, width, 3), 90, np.uint8)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", picture, options)[1].tobytes()


def with_segments(content: bytes, segments: list[bytes], fill: int) -> bytes:
    """The JPEG with application segments after its start, fill bytes before each."""
    parts = [
        b"\xff" * (fill + 1) + b"\xe1" + (len(body) + 2).to_bytes(2, "big") + body
        for body in segments
    ]
    return content[:2] + b"".join(parts) + content[2:]


@settings(max_examples=40)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    progressive=st.booleans(),
    grey=st.booleans(),
    segments=st.lists(st.binary(max_size=40) | st.just(jpeg(8, 9)), max_size=3),
    fill=st.integers(0, 2),
)
def test_jpeg(tmp_path_factory, width, height, progressive, grey, segments, fill):
    content = with_segments(jpeg(width, height, progressive, grey), segments, fill)
    path = tmp_path_factory.getbasetemp() / "picture.jpg"
    path.write_bytes(content)
    decoded = decode_picture(content)
    assert picture_size(path) == (decoded.shape[1], decoded.shape[0]) == (width, height)


def test_orientation_is_ignored(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(with_segments(jpeg(60, 20), [ORIENTATION_6], 0))
    assert cv2.imread(str(path)).shape[:2] == (60, 20)  # OpenCV itself would turn it
    assert picture_size(path) == (60, 20)


def test_other_formats_are_decoded(tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(cv2.imencode(".png", np.zeros((7, 5, 3), np.uint8))[1].tobytes())
    assert picture_size(path) == (5, 7)


def test_real_pictures(shared):
    paths = sorted((shared / "data" / "wider_val_mini").rglob("*.jpg"))[::60]
    assert len(paths) > 5
    for path in paths:
        height, width = cv2.imread(str(path)).shape[:2]
        assert picture_size(path) == (width, height)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\0", b"no picture"])
def test_what_is_no_picture(tmp_path, content):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError):
        picture_size(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PictureError, match="cannot be read: No such file"):
        picture_size(tmp_path / "none.jpg")


@pytest.fixture
def output(tmp_path, spec) -> RawOutput:
    """A picture and a raw output without faces, for a model of 32 x 64 pixels."""
    (tmp_path / "a.jpg").write_bytes(jpeg(60, 20))
    files = tuple(str(tmp_path / name) for name in output_names("a"))
    for file, shape in zip(files, output_shapes(spec(height=32, width=64)), strict=True):
        write_raw(Path(file), np.zeros(shape, np.float32))
    return RawOutput("0--E/a", str(tmp_path / "a.jpg"), files)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("number", range(4))
def test_a_raw_output_that_is_not_finite_has_failed(tmp_path, spec, output, bad, number):
    model = spec(height=32, width=64)
    assert write_prediction(output, model, tmp_path / "out", "guide") is None
    assert (tmp_path / "out" / "0--E" / "a.txt").read_text() == "0--E/a.jpg\n0\n"
    values = np.fromfile(output.files[number], "<f4")
    values[3] = bad
    values.tofile(output.files[number])
    reason = write_prediction(output, model, tmp_path / "other", "guide")
    assert f"a_{number}.bin holds NaN or infinite values" in reason
    assert not (tmp_path / "other").exists()


def test_a_prediction_that_the_disk_does_not_take_is_one_line(tmp_path, spec, output):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"0--E/a\.txt: cannot be written"):
        write_prediction(output, spec(height=32, width=64), tmp_path / "out", "guide")


@pytest.mark.usefixtures("ray_session")
def test_a_disk_that_takes_no_input_tensor_is_one_line(tmp_path, spec, capfd):
    (tmp_path / "a.jpg").write_bytes(jpeg(60, 20))
    items = [WorkItem("0--E/a", str(tmp_path / "a.jpg"), 1)]
    contract = input_contract(spec(height=32, width=64), "u8")
    with pytest.raises(UserError, match=r"none/a\.bin: cannot be written \(No such file"):
        write_inputs(items, contract, tmp_path / "none", lambda *_: None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("ray_session")
def test_damaged_pictures_make_no_input_tensor_unless_they_are_used(tmp_path, spec):
    (tmp_path / "a.jpg").write_bytes(jpeg(60, 20)[:-10])
    (tmp_path / "b.jpg").write_bytes(jpeg(60, 20))
    (tmp_path / "bins").mkdir()
    contract = input_contract(spec(height=32, width=64), "u8")
    for used in (False, True):
        items = [
            WorkItem(f"0--E/{name}", str(tmp_path / f"{name}.jpg"), 1, use_damaged=used)
            for name in "ab"
        ]
        written = write_inputs(items, contract, tmp_path / "bins", lambda *_: None)
        ((id, reason),) = written.damaged
        assert (id, "damaged" in reason) == ("0--E/a", True)
        assert written.failures == ([] if used else written.damaged)
        there = sorted(path.name for path in (tmp_path / "bins").iterdir())
        assert there == (["a.bin", "b.bin"] if used else ["b.bin"])

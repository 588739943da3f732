"""Pictures come into the rows of a buffer that is used again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.devices.reader import LetterboxedPicture, OwnSizeReader, Reader, ShippedPicture
from cfdist.preprocess import View, read_into
from cfdist.widerface.manifest import WorkItem

SIZE = (96, 64)


@pytest.fixture
def reader():
    reader = Reader(SIZE, threads=2, rows=4, buffers=1)
    yield reader
    reader.close()


def letterboxed(item: WorkItem) -> tuple[np.ndarray, tuple[int, int]]:
    row = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    return row, read_into(item.path, row).size


def test_rows_hold_the_letterboxed_pictures(reader, items):
    with reader.read(items[:3]) as pictures:
        assert pictures.keys == ("e/0", "e/1", "e/2")
        assert pictures.sizes.tolist() == [[100, 150], [120, 150], [140, 150]]
        assert pictures.failures == ()
        for i, item in enumerate(items[:3]):
            np.testing.assert_array_equal(pictures.letterboxed[i], letterboxed(item)[0])
    assert reader.decoded == 3


def test_broken_pictures_leave_no_gap(reader, items, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    bad = WorkItem("e/bad", str(broken), 10)
    gone = WorkItem("e/gone", str(tmp_path / "no"), 0)
    with reader.read([bad, items[5], gone]) as pictures:
        assert pictures.keys == ("e/5",)
        assert pictures.failures == (
            ("e/bad", "not a picture that can be decoded"),
            ("e/gone", "cannot be read: No such file or directory"),
        )
        np.testing.assert_array_equal(pictures.letterboxed, [letterboxed(items[5])[0]])
    assert reader.decoded == 1


def test_a_damaged_picture_fails_or_is_used_and_is_told_both_times(reader, items, tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(Path(items[0].path).read_bytes()[:-200])
    half = WorkItem("e/half", str(path), 10)
    with reader.read([half, items[1]]) as pictures:
        assert pictures.keys == ("e/1",)
        ((key, reason),) = pictures.failures
        assert pictures.damages == {key: reason}
        assert (key, "damaged or unusual JPEG" in reason) == ("e/half", True)
    with reader.read([replace(half, use_damaged=True), items[1]]) as pictures:
        assert pictures.keys == ("e/half", "e/1")
        assert pictures.failures == ()
        assert pictures.damages == {key: reason}


def test_damage_of_ready_pixels_is_handed_on(reader):
    pixels = np.zeros(SIZE[0] * SIZE[1] * 3, np.uint8)
    used = LetterboxedPicture("e/0", (5, 5), pixels, damage="half")
    failed = LetterboxedPicture("e/1", (0, 0), pixels, "half", "half")
    with reader.read([failed, used]) as pictures:
        assert pictures.keys == ("e/0",)
        assert pictures.failures == (("e/1", "half"),)
        assert pictures.damages == {"e/0": "half", "e/1": "half"}


def test_a_chunk_of_broken_pictures_only(reader, tmp_path):
    with reader.read([WorkItem("e/gone", str(tmp_path / "no"), 0)]) as pictures:
        assert pictures.keys == ()
        assert pictures.sizes.shape == (0, 2)
        assert pictures.letterboxed.shape == (0, SIZE[1], SIZE[0], 3)


@pytest.mark.parametrize("is_kept", [False, True])
def test_ready_pixels_are_copied_and_count_as_decoded_unless_kept(reader, items, is_kept):
    row, size = letterboxed(items[0])
    ready = LetterboxedPicture("e/0/2", size, row.reshape(-1), is_kept=is_kept)
    failed = LetterboxedPicture("e/1/2", (0, 0), np.zeros(row.size, np.uint8), "broken")
    with reader.read([failed, ready]) as pictures:
        assert pictures.keys == ("e/0/2",)
        assert pictures.failures == (("e/1/2", "broken"),)
        assert pictures.sizes.tolist() == [list(size)]
        np.testing.assert_array_equal(pictures.letterboxed[0], row)
    assert reader.decoded == (not is_kept)


def test_the_same_memory_is_used_again(reader, items):
    with reader.read(items[:2]) as first:
        pass
    with reader.read(items[2:4]) as second:
        assert np.shares_memory(first.letterboxed, second.letterboxed)


def test_opencv_and_python_get_their_settings_back():
    before = cv2.getNumThreads(), sys.getswitchinterval()
    reader = Reader(SIZE, threads=1, rows=1, buffers=1)
    assert cv2.getNumThreads() == 1
    reader.close()
    assert (cv2.getNumThreads(), sys.getswitchinterval()) == before


def test_pictures_at_their_own_size_come_in_batches_of_one_shape(items, tmp_path):
    gone = WorkItem("e/gone", str(tmp_path / "no"), 0)
    half = tmp_path / "half.jpg"
    half.write_bytes(Path(items[1].path).read_bytes()[:-200])
    used = WorkItem("e/used", str(half), 10, use_damaged=True)
    shipped = ShippedPicture(items[2], Path(items[2].path).read_bytes())
    reader = OwnSizeReader(threads=2, batch=4)
    portions = [*reader.portions([items[0], gone, used, shipped, items[3]])]
    reader.close()
    # 100, 120, 140 and 160 pixels wide; the last one is of another batch of files.
    assert [(one.keys, one.letterboxed.shape[:3]) for one in portions] == [
        (("e/0", "e/used"), (2, 160, 128)),
        (("e/2",), (1, 160, 160)),
        ((), (0, 32, 32)),
        (("e/3",), (1, 160, 160)),
    ]
    assert portions[0].sizes.tolist() == [[100, 150], [120, 150]]
    assert [*portions[0].damages] == ["e/used"]
    assert portions[2].failures == (("e/gone", "cannot be read: No such file or directory"),)
    for one, item in ((portions[0], items[0]), (portions[1], items[2])):
        plain = cv2.resize(cv2.imread(item.path), one.letterboxed.shape[2:0:-1])
        np.testing.assert_array_equal(one.letterboxed[0], plain)
    assert reader.decoded == 4


def test_a_picture_that_is_too_large_fails_alone(items):
    reader = OwnSizeReader(threads=1, batch=4, most_pixels=160 * 128)
    portions = [*reader.portions(items[:3], [View(0.5), View()])]
    reader.close()
    assert {key for one in portions for key in one.keys} == {"e/0", "e/1"}
    assert [one.failures for one in portions if one.failures] == [
        (("e/2", "an input of 160x160 pixels does not fit into memory at preprocess.size=own"),)
    ]


def test_a_picture_of_a_size_that_the_model_lacks_fails_alone(items):
    reader = OwnSizeReader(
        threads=1, batch=4, takes=lambda height, width: (height, width) != (96, 96)
    )
    portions = [*reader.portions(items[:3], [View(), View(0.5)])]
    reader.close()
    assert {key for one in portions for key in one.keys} == {"e/0", "e/1"}
    assert [one.failures for one in portions if one.failures] == [
        (("e/2", "96x96 (rows x columns) is none of the model's input sizes"),)
    ]


def test_each_picture_is_decoded_once_and_comes_in_each_view(items):
    views = [View(scale, mirrored) for scale in (1, 32) for mirrored in (False, True)]
    own = OwnSizeReader(threads=1, batch=2)
    portions = [*own.portions(items[:2], views)]
    own.close()
    assert [one.view for one in portions for _ in one.keys] == [one for one in views for _ in "ab"]
    assert own.decoded == 2
    shapes = [one.letterboxed.shape[1:3] for one in portions]
    assert shapes == [(160, 128)] * 2 + [(64, 32), (64, 32)]
    for plain, mirrored in (portions[:2], portions[2:]):
        np.testing.assert_array_equal(plain.letterboxed[:, :, ::-1], mirrored.letterboxed)


def test_letterboxed_pictures_are_mirrored_too(reader, items):
    views = [View(), View(is_mirrored=True)]
    portions = [(one.letterboxed.copy(), one.view) for one in reader.portions(items[:2], views)]
    assert [view for _, view in portions] == views
    np.testing.assert_array_equal(portions[0][0][:, :, ::-1], portions[1][0])
    assert reader.decoded == 2

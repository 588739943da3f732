"""Cut-outs and thumbnails."""

from __future__ import annotations

import base64
import errno
import re
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist import storage
from cfdist.report.page.gallery import Drawn, Entry, Thumbnails, around
from cfdist.storage import place_of

ENTRY = Entry("e/<a>", "what")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("g") / "a.jpg"
    pixels = np.zeros((400, 600, 3), np.uint8)
    pixels[:, 300:] = 200
    cv2.imwrite(str(path), pixels)
    return path


def shown(thumbnails, place, view=lambda w, h: (0, 0, w, h), layers=(("faces", ()),)) -> Entry:
    return thumbnails.show(ENTRY, place, view, layers)


def pixels_of(image: str) -> np.ndarray:
    data = re.search(r'href="data:image/jpeg;base64,([^"]+)"', image)[1]
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)


@given(
    st.tuples(*[st.floats(-50, 900)] * 2, *[st.floats(0, 900)] * 2),
    st.integers(1, 900),
    st.integers(1, 900),
)
def test_a_cut_out_lies_in_its_picture(box, width, height):
    x, y, w, h = around(box, width, height)
    assert 0 <= x < x + w <= width
    assert 0 <= y < y + h <= height


def test_a_cut_out_holds_its_face():
    x, y, w, h = around((500.0, 300.0, 40.0, 50.0), 1024, 768)
    assert (w, h) == (250, 250)
    assert x < 500 < 540 < x + w
    assert y < 300 < 350 < y + h


def test_a_thumbnail_shows_the_cut_out(picture):
    entry = shown(Thumbnails(side=100), str(picture), lambda w, h: (200, 100, 200, 100))
    (image,) = entry.images
    pixels = pixels_of(image)
    assert pixels.shape == (50, 100, 3)
    assert pixels[:, :45].max() < 20
    assert pixels[:, 55:].min() > 180
    assert 'viewBox="200 100 200 100"' in image
    assert 'aria-label="e/&lt;a&gt;: faces"' in image


def test_boxes_near_the_cut_out_are_drawn_with_a_halo(picture):
    layers = [
        ("left", [Drawn((10, 10, 20, 20), "face"), Drawn((500, 300, 9, 9), "found")]),
        ("right", []),
    ]
    entry = shown(Thumbnails(), str(picture), lambda w, h: (0, 0, 100, 100), layers)
    left, right = entry.images
    assert left.count('class="face"') == left.count('class="halo"') == 1
    assert "found" not in left
    # The second one shows the first one's bytes again.
    assert "data:" not in right
    assert re.search(r'<image id="(\w+)"', left)[1] == re.search(r'<use href="#(\w+)"', right)[1]


def test_pictures_are_read_from_archives(picture, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(picture, "images/e/a.jpg")
    assert shown(Thumbnails(), place_of(str(archive), "images/e/a.jpg")).images


def test_what_cannot_be_shown_leaves_a_line(picture, tmp_path):
    broken = tmp_path / "b.jpg"
    broken.write_bytes(b"no picture")
    texts = [
        shown(Thumbnails(), None),
        shown(Thumbnails(), str(tmp_path / "gone.jpg")),
        shown(Thumbnails(), str(broken)),
        shown(Thumbnails(most_bytes=10), str(picture)),
    ]
    assert not any(entry.images for entry in texts)
    assert texts[0].text == "what. The picture is not shown: dataset.root is not given"
    assert texts[1].text.endswith("cannot be read any more: No such file or directory")
    assert "cannot be read any more: " in texts[2].text
    assert texts[3].text.endswith("Not drawn, for the page is full")


def test_a_store_that_does_not_answer_is_asked_once(picture, tmp_path, monkeypatch):
    errors = iter([FileNotFoundError(errno.ENOENT, "not there"), OSError(errno.EIO, "timed out")])

    def read(place):
        raise next(errors)

    monkeypatch.setattr(storage, "read", read)
    thumbnails = Thumbnails()
    gone = [shown(thumbnails, place_of("s3://bucket/a", f"{n}.jpg")).text for n in range(4)]
    assert [text.rpartition(": ")[2] for text in gone] == ["not there", *["timed out"] * 3]
    monkeypatch.undo()
    assert shown(thumbnails, str(picture)).images  # another place


def test_the_boxes_count_as_bytes_of_the_page_as_well(picture):
    thumbnails = Thumbnails(most_bytes=50_000)
    crowd = [("faces", [Drawn((10, 10, 20, 20), "face")] * 1000)]
    assert not shown(thumbnails, str(picture), layers=crowd).images
    entries = [
        shown(thumbnails, str(picture), layers=[("faces", crowd[0][1][:100])]) for _ in range(9)
    ]
    drawn = [image for entry in entries for image in entry.images]
    assert 0 < len(drawn) < 9
    assert 25_000 < sum(map(len, drawn)) <= 50_000


def test_a_damaged_picture_is_shown_as_it_decodes(picture, tmp_path):
    half = tmp_path / "half.jpg"
    half.write_bytes(picture.read_bytes()[:-200])
    assert shown(Thumbnails(), str(half)).images

"""What `input` may be, and which pictures are meant by it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.detecting.pictures import find_pictures
from cfdist.errors import UserError


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of files with the names of pictures, and of others."""
    monkeypatch.chdir(tmp_path)
    names = ("b/x.jpg", "a/x.JPG", "ü 人.png", "[1].jpg", "note.txt", ".hidden.jpg", "a/.h/y.jpg")
    for name in (*names, "old run/annotated/x.jpg", "old run/.lock"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    Path("picture").write_bytes(cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes())
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for name in ("b/x.jpg", "a/x.jpg", "__MACOSX/a/._x.jpg", "__MACOSX/y.jpg", "note.txt"):
            archive.writestr(name, "x")
    return tmp_path / "photos"


ALL = ["[1].jpg", "a/x.JPG", "b/x.jpg", "ü 人.png"]


@pytest.mark.parametrize(
    ("given", "ids", "others"),
    [
        ("photos", ALL, 1),
        ("photos/", ALL, 1),
        ("photos/a/x.JPG", ["x.JPG"], 0),
        ("picture", ["picture"], 0),  # named itself, and its content is one
        ("photos/[1].jpg", ["[1].jpg"], 0),  # a file of that name comes before a pattern
        ("photos/*.jpg", ["[1].jpg"], 0),
        ("photos/*/x.*", ["a/x.JPG", "b/x.jpg"], 0),
        ("photos/[ab]", ["a/x.JPG", "b/x.jpg"], 0),
        ("photos/*.txt", ["note.txt"], 0),
        ("photos.zip", ["a/x.jpg", "b/x.jpg"], 1),
        ("file://{here}/photos/b", ["x.jpg"], 0),
        ("file://{here}/photos/b/x.jpg", ["x.jpg"], 0),
        ("file://{here}/photos.zip", ["a/x.jpg", "b/x.jpg"], 1),
    ],
)
def test_what_can_be_named(photos, given, ids, others):
    found = find_pictures(given.format(here=photos.parent))
    assert [item.id for item in found.items] == ids
    assert (found.refused, found.others) == ((), others)
    assert all(item.is_upright for item in found.items)
    here = ("inside:", str(photos), str(photos.parent / "picture"))
    assert all(item.path.startswith(here) for item in found.items)


@pytest.mark.slow
def test_links_that_lead_back_end(photos):
    (photos / "a" / "loop").symlink_to("..")
    assert [item.id for item in find_pictures("photos").items] == ALL
    assert [item.id for item in find_pictures("photos/**").items] == ALL


def test_a_name_that_is_no_utf8_has_failed(photos):
    with open(os.fsencode(photos) + b"/b/\xff.jpg", "wb"):
        pass
    found = find_pictures("photos/b")
    assert [item.id for item in found.items] == ["x.jpg"]
    assert found.refused == (("\\xff.jpg", "its name has bytes that are no UTF-8; rename it"),)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("photo", "no such file or folder; give a picture"),
        ("photos/*.bmp", "no file or folder fits the pattern"),
        ("photos/n*", r"holds no picture \(1 other file, none"),
        ("empty", "holds no picture and no other file;"),
        ("photos/note.txt", "is neither a picture nor a whole zip archive; give"),
        ("file:///nowhere", "No such file"),
        ("file:///nowhere/x.jpg", "No such file"),
        ("nothing://x/y", "nothing"),
        ("https://example.com/x.jpg", "is a web address, .*; download"),
        ("s3://me:secret@bucket/x", "holds a key or password"),
    ],
)
def test_where_no_picture_is_one_line_says_so(photos, given, reason):
    (photos.parent / "empty").mkdir()
    with pytest.raises(UserError, match=f"^input.*{reason}") as refused:
        find_pictures(given)
    assert "secret" not in str(refused.value)


def test_a_film_is_refused_by_its_beginning(tmp_path):
    """It is as large as a film, more than what a picture's file may have."""
    with open(tmp_path / "film.mp4", "wb") as file:
        file.write(b"\0\0\0\x20ftypisom")
        file.truncate(5 << 30)
    with pytest.raises(UserError, match=r"film.mp4: is neither a picture nor a whole zip archive"):
        find_pictures(str(tmp_path / "film.mp4"))


def test_a_pattern_leads_to_no_folder_outside(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "x.jpg").touch()
    with pytest.raises(UserError, match=r"has \.\. after a wildcard"):
        find_pictures(f"{tmp_path}/*/../x.jpg")

"""Which pictures a run takes."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import pytest

from cfdist import storage
from cfdist.errors import UserError
from cfdist.widerface.manifest import Manifest, WorkItem, build_manifest, picture_and_pass

IDS = ("b/2", "a/1", "a/3")


@pytest.fixture
def root(tmp_path):
    for name in ("a/1.jpg", "b/2.jpg", "a/other.jpg", "a/1.txt"):
        path = tmp_path / "WIDER_val" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5)
    return tmp_path / "WIDER_val"


def refuse_folder(monkeypatch, folder) -> None:
    """Make a folder unreadable, also for the superuser."""
    there = Path.iterdir

    def iterdir(path):
        if path == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return there(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)


def test_order_is_the_ground_truth_s(root):
    manifest = build_manifest(root, IDS)
    assert [item.id for item in manifest.items] == ["b/2", "a/1"]
    assert [item.size for item in manifest.items] == [5, 5]
    assert (manifest.absent, manifest.unknown) == (1, 1)
    for same in (root / "images", root.parent):
        assert build_manifest(same, IDS).items == manifest.items


def test_limit_takes_the_first(root):
    assert [item.id for item in build_manifest(root, IDS, 1).items] == ["b/2"]


def test_fingerprint_follows_names_and_sizes(root):
    before = build_manifest(root, IDS).fingerprint
    assert build_manifest(root, IDS).fingerprint == before
    (root / "images" / "a" / "1.jpg").write_bytes(b"x" * 6)
    assert build_manifest(root, IDS).fingerprint != before
    assert build_manifest(root, IDS[:1]).fingerprint != before


def test_missing_and_empty_roots_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder or archive"):
        build_manifest(tmp_path / "nowhere", IDS)
    with pytest.raises(UserError, match="none of the ground truth's 3 pictures is there"):
        build_manifest(tmp_path, IDS)


def test_further_passes_have_keys_of_their_own():
    items = (WorkItem("e/a", "a.jpg", 1), WorkItem("e/b", "b.jpg", 2))
    manifest = Manifest(items, absent=0, unknown=0)

    twice = manifest.repeated(2)

    assert [item.key for item in twice.items] == ["e/a", "e/b", "e/a/2", "e/b/2"]
    assert [picture_and_pass(item.key) for item in twice.items] == [
        (item.id, item.pass_number) for item in twice.items
    ]
    assert twice.pictures == items
    assert (manifest.passes, twice.passes) == (1, 2)
    assert twice.fingerprint == manifest.fingerprint
    assert manifest.repeated(1) == manifest


def test_damaged_pictures_that_are_used_make_another_run(root):
    failing, using = build_manifest(root, IDS), build_manifest(root, IDS, use_damaged=True)
    assert not any(item.use_damaged for item in failing.items)
    assert all(item.use_damaged for item in using.repeated(2).items)
    assert using.fingerprint != failing.fingerprint


@pytest.mark.parametrize("event", ["a", "lost+found"])
def test_an_event_that_cannot_be_read_is_no_smaller_data_set(root, monkeypatch, event):
    (root / "images" / "lost+found").mkdir()
    refuse_folder(monkeypatch, root / "images" / event)
    if event == "a":
        with pytest.raises(PermissionError, match=str(root / "images" / "a")):
            build_manifest(root, IDS)
    else:  # no folder of the data set
        assert len(build_manifest(root, IDS).items) == 2


def pack(root: Path, path: Path, prefixes: tuple[str, ...]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for prefix in prefixes:
            for file in sorted(root.rglob("*.*")):
                archive.write(file, f"{prefix}{file.relative_to(root)}")
        archive.writestr("__MACOSX/WIDER_val/images/a/._1.jpg", b"x")
        archive.writestr("top.jpg", b"x")
    return path


@pytest.mark.parametrize("prefix", ["", "WIDER_val/", "x/WIDER_val/", "x/y/"])
def test_an_archive_and_a_uri_are_the_same_run_as_the_folder(root, tmp_path, prefix):
    folder = build_manifest(root, IDS)
    path = pack(root, tmp_path / f"{prefix.count('/')}.zip", (prefix,))
    for source in (path, f"file://{path}", f"file://{root}"):
        manifest = build_manifest(source, IDS)
        assert [item.id for item in manifest.items] == [item.id for item in folder.items]
        assert (manifest.absent, manifest.unknown) == (folder.absent, folder.unknown)
        assert manifest.fingerprint == folder.fingerprint
        assert all(storage.read(item.path) == b"x" * 5 for item in manifest.items)


def test_pictures_that_are_there_twice_are_refused(root, tmp_path):
    path = pack(root, tmp_path / "twice.zip", ("a/", "b/"))
    with pytest.raises(UserError, match="holds 2 pictures in a/images and as many in b/images"):
        build_manifest(path, IDS)


def test_stores_without_pictures_are_named(tmp_path):
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(UserError, match=r"text: is not a zip archive.*give WIDER_val.zip"):
        build_manifest(tmp_path / "text", IDS)
    with pytest.raises(UserError, match=r"nosuch://x: .*; give WIDER_val.zip"):
        build_manifest("nosuch://x", IDS)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("images/a/1.txt", b"x")
    with pytest.raises(UserError, match="none of the ground truth's 3 pictures is there"):
        build_manifest(tmp_path / "empty.zip", IDS)

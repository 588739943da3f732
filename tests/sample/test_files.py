"""The sample set's folder is there whole or not at all, and never a stranger's."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cfdist.errors import UserError
from cfdist.sample import files
from cfdist.sample.files import MARKER, ensure_sample, is_complete


@pytest.fixture
def small(monkeypatch):
    """A set of two files, made at once."""
    content = [("WIDER_val/images/e/a.jpg", b"picture"), ("ground_truth/x.mat", b"truth")]
    monkeypatch.setattr(files, "sample_files", lambda: iter(content))
    return content


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_whole_set_is_in_the_layout_of_wider_face(tmp_path):
    paths = ensure_sample(tmp_path / "set")
    assert is_complete(tmp_path / "set")
    assert len(list(paths.root.glob("WIDER_val/images/*/*.jpg"))) == 69
    assert len(list(paths.ground_truth.glob("*.mat"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_that_is_there_is_taken(small, tmp_path, monkeypatch):
    ensure_sample(tmp_path / "set")
    before = content_of(tmp_path)
    monkeypatch.setattr(files, "sample_files", lambda: pytest.fail("made again"))
    ensure_sample(tmp_path / "set")
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("damage", ["version", "file", "marker"])
def test_another_version_or_a_damaged_set_is_made_anew(small, tmp_path, monkeypatch, damage):
    folder = tmp_path / "set"
    ensure_sample(folder)
    whole = content_of(folder)
    if damage == "version":
        monkeypatch.setattr(files, "SAMPLE_VERSION", "other")
    elif damage == "file":
        (folder / "ground_truth" / "x.mat").unlink()
    else:
        (folder / MARKER).write_text("{")
    ensure_sample(folder)
    assert is_complete(folder)
    assert content_of(folder).keys() == whole.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_commands_make_it_at_once(small, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_sample(tmp_path / "set"), range(8)))
    assert is_complete(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_stranger_s_folder_is_left_alone(small, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a sample set of this program"):
        ensure_sample(tmp_path)
    assert content_of(tmp_path) == {"mine.txt": b"mine"}


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted():
        yield "ground_truth/x.mat", b"truth"
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sample_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_sample(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_goes_in_time(small, tmp_path):
    old, young = (tmp_path / f".set.{name}.partial" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    ensure_sample(tmp_path / "set")
    assert not old.exists()
    assert young.exists()
    shutil.rmtree(young)


def test_a_folder_that_cannot_be_written_to_is_named(small, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write the sample set to .*dataset.root=FOLDER"):
        ensure_sample(tmp_path / "file" / "set")

"""The two published files: found, checked, linked, fetched; a wrong one never passes."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cfdist.download import published
from cfdist.download.published import (
    GROUND_TRUTH,
    PICTURES,
    Published,
    alone_in,
    check_together,
    given_back,
)
from cfdist.errors import UserError
from cfdist.sample.files import mat_files
from cfdist.widerface.ground_truth import PictureTruth
from tests.fakes.mirror import serving

IDS = [f"{event}--E/{event}_{number}" for event in range(3) for number in range(2)]


@pytest.fixture(scope="module")
def mats() -> dict[str, bytes]:
    counted = np.ones((3, 1), bool)
    return mat_files([PictureTruth(id, np.array([[1.0, 2, 3, 4]]), counted) for id in IDS])


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    """A set of 6 pictures in 3 events in place of the published one."""
    monkeypatch.setattr(published, "WIDER_VAL_PICTURES", len(IDS))
    monkeypatch.setattr(published, "_EVENTS", 3)
    monkeypatch.setattr(published, "_COUNTED", (6, 6, 6))
    monkeypatch.setattr(published, "_BOXES", 6)


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(name, content)
    return path


def pictures_in(path: Path, ids=tuple(IDS), content: bytes = b"picture") -> Path:
    return zipped(path, {f"WIDER_val/images/{id}.jpg": content for id in ids})


def truth_in(path: Path, mats: dict[str, bytes]) -> Path:
    files = {f"eval_tools/ground_truth/{name}": content for name, content in mats.items()}
    return zipped(path, {**files, "eval_tools/wider_eval.m": b""})


def known(path: Path) -> Published:
    content = path.read_bytes()
    digests = {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha256")}
    return Published(path.name, len(content), digests)


def test_what_is_whole_passes(tmp_path, mats):
    pictures = pictures_in(tmp_path / PICTURES)
    truth = truth_in(tmp_path / GROUND_TRUTH, mats)
    for file, whose in ((pictures, known(pictures)), (truth, Published(truth.name, None, {}))):
        whose.check(file)
        assert whose.find(tmp_path) == file
    Published(PICTURES, None, {}).check(pictures)
    check_together(pictures, truth)


def test_other_bytes_are_named_by_size_and_sum(tmp_path):
    wanted = known(pictures_in(tmp_path / PICTURES))
    path = pictures_in(tmp_path / "x" / PICTURES, content=b"Picture")
    with pytest.raises(UserError, match=r"zip: md5 [0-9a-f]{32}, expected [0-9a-f]{32}; for a rep"):
        wanted.check(path)
    pictures_in(path, content=b"longer than it was")
    with pytest.raises(UserError, match=r"\d+ bytes, expected \d+"):
        wanted.check(path)


def test_without_a_known_sum_the_content_is_checked(tmp_path, mats):
    path, whose = tmp_path / PICTURES, Published(PICTURES, None, {})
    for ids in (IDS[:-1], [*IDS[:-1], "9--E/0_9"]):
        with pytest.raises(UserError, match=r"pictures in . folders, expected 6 in 3"):
            whose.check(pictures_in(path, ids))
    content = bytearray(pictures_in(path).read_bytes())
    content[content.index(b"picture")] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged in .* its content is not what"):
        whose.check(path)
    truth, of_truth = tmp_path / GROUND_TRUTH, Published(GROUND_TRUTH, None, {})
    with pytest.raises(UserError, match=r"lacks wider_easy_val\.mat"):
        of_truth.check(truth_in(truth, {"wider_face_val.mat": mats["wider_face_val.mat"]}))
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        of_truth.check(truth_in(truth, {**mats, "wider_hard_val.mat": b"cut"}))


def test_a_ground_truth_of_another_set_is_refused(tmp_path, mats, monkeypatch):
    monkeypatch.setattr(published, "_COUNTED", (6, 6, 7))
    path = truth_in(tmp_path / GROUND_TRUTH, mats)
    with pytest.raises(UserError, match=r"\(6, 6, 6\) faces .* expected \(6, 6, 7\)"):
        Published(GROUND_TRUTH, None, {}).check(path)


def test_pictures_that_are_missing_or_empty_are_counted(tmp_path, mats):
    truth = truth_in(tmp_path / GROUND_TRUTH, mats)
    folder = tmp_path / "WIDER_val"
    for id in IDS[:-1]:
        (folder / "images" / id).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{id}.jpg").write_bytes(b"" if id == IDS[0] else b"x")
    with pytest.raises(UserError, match="2 of the 6 pictures are missing or empty"):
        check_together(folder, truth)


@pytest.mark.parametrize("is_packed", [True, False])
def test_what_lies_elsewhere_is_linked(tmp_path, mats, is_packed, monkeypatch):
    given, folder = tmp_path / "given", tmp_path / "to"
    folder.mkdir()
    pictures = pictures_in(given / PICTURES)
    truth_in(given / GROUND_TRUTH, mats)
    files = [Published(PICTURES, None, {}), Published(GROUND_TRUTH, None, {})]
    if not is_packed:
        for name in (PICTURES, GROUND_TRUTH):
            with zipfile.ZipFile(given / name) as archive:
                archive.extractall(given)
            (given / name).unlink()
        files[0] = known_or_any = Published(PICTURES, 5, {"md5": "0" * 32})
        assert known_or_any.find(given) == given / "WIDER_val"
    placed = [one.place(folder, given, [], 1) for one in files]
    names = [PICTURES, GROUND_TRUTH] if is_packed else ["WIDER_val", "ground_truth"]
    assert [path.name for path in placed] == names
    check_together(*placed)
    if is_packed:
        assert os.path.samefile(pictures, placed[0])
        assert (folder / f"{PICTURES}.sha256").read_text().endswith(f"  {PICTURES}\n")
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "devices")))
        placed[0].unlink()
        assert files[0].place(folder, given, [], 1).stat().st_nlink == 1
    assert [one.place(folder, None, [], 1) for one in files] == placed  # and no network


@pytest.mark.parametrize("is_packed", [True, False])
def test_what_is_refused_leaves_no_links(tmp_path, mats, is_packed):
    given, folder = tmp_path / "given", tmp_path / "to"
    folder.mkdir()
    others = [*IDS[:-1], "2--E/another"]
    pictures_in(given / PICTURES, others)
    if not is_packed:
        with zipfile.ZipFile(given / PICTURES) as archive:
            archive.extractall(given)
        (given / PICTURES).unlink()
    truth_in(folder / GROUND_TRUTH, mats)
    files = [Published(PICTURES, None, {}), Published(GROUND_TRUTH, None, {})]
    with pytest.raises(UserError, match="1 of the 6 pictures"), given_back(files, folder, given):
        check_together(*[one.place(folder, given, [], 1) for one in files])
    assert [path.name for path in folder.iterdir()] == [GROUND_TRUTH]
    assert files[0].find(given)


def test_a_file_that_has_changed_since_is_not_used(tmp_path):
    given, folder = tmp_path / "given", tmp_path / "to"
    folder.mkdir()
    pictures_in(given / PICTURES)
    whose = Published(PICTURES, None, {})
    placed = whose.place(folder, given, [], 1)
    pictures_in(placed, content=b"another")
    with pytest.raises(UserError, match=r"sha256 .*; move it away, and call this again"):
        whose.place(folder, None, [], 1)


def test_a_mirror_is_a_file_or_a_folder_that_holds_both(tmp_path, capsys):
    content = pictures_in(tmp_path / "made.zip").read_bytes()
    with serving() as mirror:
        mirror.files[f"a/{PICTURES}"] = content
        mirrors = [f"{mirror.address}{GROUND_TRUTH}", f"{mirror.address}a/"]
        Published(PICTURES, None, {}).place(tmp_path, tmp_path / "given", mirrors, 1)
    assert (tmp_path / PICTURES).read_bytes() == content
    assert capsys.readouterr().out.startswith(f"{PICTURES}: not in {tmp_path / 'given'}\n")
    with pytest.raises(UserError, match=r"download\.mirrors: none is for eval_tools\.zip"):
        Published(GROUND_TRUTH, None, {}).place(tmp_path, None, ["http://h/WIDER_val.zip"], 1)


def test_two_commands_do_not_download_into_one_folder(tmp_path):
    is_used = pytest.raises(UserError, match="another command downloads into it")
    with alone_in(tmp_path / "new"), is_used:
        alone_in(tmp_path / "new").__enter__()
    with alone_in(tmp_path / "new"):
        pass

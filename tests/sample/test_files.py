"""The sample set's folder: made once, whole or not at all, by however many processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.errors import UserError
from cfdist.sample import SAMPLE_VERSION, ensure_sample, files
from cfdist.sample.files import MARKER, is_complete
from cfdist.sample.pictures import EVENTS, Event, Picture, portrait, render_set
from cfdist.widerface.ground_truth import load_ground_truth
from cfdist.widerface.manifest import build_manifest

FEW = (Event("Crowds", 2, (9, 12), spacing=6), Event("Blur", 2, (40, 60), blur=3))


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_sample(tmp_path_factory.mktemp("sample") / "set").root


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ensure_sample` makes four pictures only."""
    monkeypatch.setattr(files, "render_set", lambda: render_set(FEW))


def digest(root: Path) -> dict[str, str]:
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in found}


def test_the_set_is_read_as_wider_face_is(whole_set: Path) -> None:
    truth = load_ground_truth(whole_set / "ground_truth")
    manifest = build_manifest(whole_set, list(truth))
    assert len(truth) == len(manifest.items) == sum(event.pictures for event in EVENTS)
    assert (manifest.absent, manifest.unknown) == (0, 0)
    assert len({id.split("/")[0] for id in truth}) == len(EVENTS)
    assert sum(item.size for item in manifest.items) < 20e6
    for item in manifest.items:
        pixels = cv2.imread(item.path)
        assert pixels is not None
        height, width = pixels.shape[:2]
        boxes = truth[item.id].boxes
        assert len(boxes) > 0
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= [width, height]).all()
        assert truth[item.id].counted[2].any()  # every picture has a face that counts


def test_the_difficulties_differ_by_many_faces(whole_set: Path) -> None:
    truth = load_ground_truth(whole_set / "ground_truth")
    easy, medium, hard = sum(picture.counted.sum(axis=1) for picture in truth.values())
    assert easy >= 150
    assert medium >= 2 * easy
    assert hard >= 1.5 * medium


def test_the_same_bytes_each_time_whatever_the_threads(tmp_path: Path, few_pictures: None) -> None:
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        first = ensure_sample(tmp_path / "first").root
        cv2.setNumThreads(4)
        portrait.cache_clear()
        second = ensure_sample(tmp_path / "second").root
    finally:
        cv2.setNumThreads(threads)
    assert len(digest(first)) == 4 + 4 + 1
    assert digest(first) == digest(second)


def test_a_second_call_makes_nothing(
    tmp_path: Path, few_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ensure_sample(tmp_path / "set").root

    def fail() -> None:
        raise AssertionError("the set is there: nothing is to be rendered")

    monkeypatch.setattr(files, "render_set", fail)
    before = os.stat(root).st_mtime_ns
    assert ensure_sample(root).ground_truth == root / "ground_truth"
    assert os.stat(root).st_mtime_ns == before
    with pytest.raises(AssertionError, match="nothing is to be rendered"):
        ensure_sample(tmp_path / "elsewhere")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Iterator[Picture]:
        yield next(render_set(FEW))
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "render_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_sample(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_an_hour(
    tmp_path: Path, few_pictures: None
) -> None:
    def leave(name: str, minutes: int) -> Path:
        event = tmp_path / name / "new" / "WIDER_val" / "images" / "0--Crowds"
        event.mkdir(parents=True)
        (event / "0_Crowds_1.jpg").write_bytes(b"half a pict")
        os.utime(tmp_path / name, (time.time() - 60 * minutes,) * 2)
        return tmp_path / name

    leave(".set[1].0123abcd.partial", minutes=61)
    kept = [
        leave(".set[1].dcba3210.partial", minutes=59),
        leave(".set1.0123abcd.partial", minutes=61),
    ]
    root = ensure_sample(tmp_path / "set[1]").root
    assert is_complete(root)
    assert sorted(tmp_path.iterdir()) == sorted([root, *kept])


@pytest.mark.parametrize("damage", ["picture", "mat", "version", "marker text"])
def test_a_damaged_or_older_set_is_made_anew(
    tmp_path: Path, few_pictures: None, damage: str
) -> None:
    root = ensure_sample(tmp_path / "set").root
    whole = digest(root)
    if damage == "picture":
        next(root.rglob("*.jpg")).unlink()
    elif damage == "mat":
        (root / "ground_truth" / "wider_hard_val.mat").unlink()
    elif damage == "version":
        marker = json.loads((root / MARKER).read_text())
        assert marker["version"] == SAMPLE_VERSION
        (root / MARKER).write_text(json.dumps(marker | {"version": "1"}))
    else:
        (root / MARKER).write_text("[]")
    (root / "left-by-the-older-one").touch()
    assert not is_complete(root)
    ensure_sample(root)
    assert digest(root) == whole
    assert list(tmp_path.iterdir()) == [root]


def make_few(directory: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "render_set", lambda: render_set(FEW))
        ensure_sample(directory)


def test_two_processes_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=make_few, args=(tmp_path / "set",)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert is_complete(tmp_path / "set")
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


@pytest.mark.parametrize("moment", ["while rendering", "before the rename"])
def test_a_slower_process_keeps_the_set_of_the_faster_one(
    tmp_path: Path, few_pictures: None, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    faster = ensure_sample(tmp_path / "faster").root

    def overtake() -> None:
        shutil.copytree(faster, tmp_path / "set")
        (tmp_path / "set" / "by-the-faster-one").touch()

    def overtaken() -> Iterator[Picture]:
        yield from render_set(FEW)
        overtake()

    replace = os.replace

    def late_replace(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            overtake()
        replace(source, target)

    if moment == "while rendering":
        monkeypatch.setattr(files, "render_set", overtaken)
    else:
        monkeypatch.setattr(os, "replace", late_replace)
    root = ensure_sample(tmp_path / "set").root
    assert (root / "by-the-faster-one").is_file()
    assert sorted(tmp_path.iterdir()) == [faster, root]


def test_what_somebody_else_put_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="not a sample set"):
            ensure_sample(place)
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/set: .*can be written to"):
        ensure_sample(tmp_path / "file" / "set")


def test_an_empty_folder_is_taken(tmp_path: Path, few_pictures: None) -> None:
    (tmp_path / "set").mkdir()
    assert is_complete(ensure_sample(tmp_path / "set").root)


def test_boxes_are_those_of_the_rendered_pictures(tmp_path: Path, few_pictures: None) -> None:
    truth = load_ground_truth(ensure_sample(tmp_path / "set").ground_truth)
    for picture in render_set(FEW):
        np.testing.assert_array_equal(truth[picture.truth.id].boxes, picture.truth.boxes)
        np.testing.assert_array_equal(truth[picture.truth.id].counted, picture.truth.counted)

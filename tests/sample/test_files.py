"""The sample set's folder: made once, whole or not at all, by however many processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat

from cfdist.errors import UserError
from cfdist.sample import SAMPLE_VERSION, ensure_sample, files
from cfdist.sample.files import MARKER, is_complete, mat_files
from cfdist.sample.pictures import EVENTS, Event, Picture, portrait, render_set
from cfdist.widerface.ground_truth import GROUND_TRUTH_FILES, PictureTruth, load_ground_truth
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
    manifest = build_manifest(whole_set, truth)
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


def test_an_interrupted_set_is_finished_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Iterator[Picture]:
        yield next(render_set(FEW))
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "render_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_sample(tmp_path / "set")
    assert not is_complete(tmp_path / "set")
    monkeypatch.setattr(files, "render_set", lambda: render_set(FEW))
    whole = ensure_sample(tmp_path / "whole").root
    assert digest(ensure_sample(tmp_path / "set").root) == digest(whole)


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
    (root / "WIDER_val/images/0--Crowds/of_an_older_version.jpg").touch()
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


@st.composite
def truths(draw: st.DrawFn) -> list[PictureTruth]:
    """One to three events of one to three pictures each."""
    made = []
    for event in range(draw(st.integers(1, 3))):
        for picture in range(draw(st.integers(1, 3))):
            faces = draw(st.integers(0, 300) if picture else st.integers(0, 3))
            rng = np.random.default_rng(draw(st.integers(0, 1000)))
            boxes = rng.integers(0, 5000, (faces, 4)).astype(np.float64)
            counted = rng.integers(0, 2, (3, faces)).astype(bool)
            made.append(PictureTruth(f"{event}--Party/{event}_Party_{picture}", boxes, counted))
    return made


def write_truths(folder: Path, pictures: list[PictureTruth]) -> None:
    for name, content in mat_files(pictures).items():
        (folder / name).write_bytes(content)


@given(truths())
def test_what_is_written_is_read_back(pictures: list[PictureTruth]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_truths(Path(folder), pictures)
        read = load_ground_truth(folder)
    assert list(read) == [picture.id for picture in pictures]
    for picture in pictures:
        np.testing.assert_array_equal(read[picture.id].boxes, picture.boxes)
        np.testing.assert_array_equal(read[picture.id].counted, picture.counted)


def test_the_files_have_the_structure_of_the_real_ones(tmp_path: Path, shared: Path) -> None:
    boxes = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    counted = np.array([[False, True], [False, True], [True, True]])
    write_truths(tmp_path, [PictureTruth(f"0--A/{name}", boxes, counted) for name in ("x", "y")])
    for name in GROUND_TRUTH_FILES:
        real, ours = (
            loadmat(shared / "data" / "wider_val_mini" / "ground_truth" / name),
            loadmat(tmp_path / name),
        )
        needed = {"event_list", "file_list", "face_bbx_list"}
        needed |= {"gt_list"} & real.keys()
        assert {key for key in ours if not key.startswith("__")} == needed
        for field in needed:
            a, b = real[field], ours[field]
            while a.dtype == object:
                assert b.dtype == object
                assert a.shape[1] == b.shape[1] == 1
                a, b = a[0, 0], b[0, 0]
            assert (a.dtype.kind, a.ndim) == (b.dtype.kind, b.ndim)


def test_the_bytes_hold_no_date() -> None:
    truth = PictureTruth("0--A/a", np.ones((1, 4)), np.ones((3, 1), bool))
    for content in mat_files([truth]).values():
        assert content[:116].decode().rstrip() == "MATLAB 5.0 MAT-file, the sample set of cfdist"

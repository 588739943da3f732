"""The embedded sample data set: its layout, its ground truth and its making."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from cfdist.widerface.sample import ensure_sample
from cfdist.widerface.sample_drawing import encode_jpeg
from cfdist.widerface.sample_scenes import DIFFICULTY_HEIGHTS, SCENES, Scene, render_picture

from cfdist.errors import UserError
from cfdist.widerface import sample, sample_photo

MATS = ["face", "easy", "medium", "hard"]
FEW = (
    Scene("Crowds", 1, 300, (8, 30), (0.4, 0.8), turned=0.2, covered=0.3, width=400),
    Scene("Edges", 1, 240, (30, 60), (0, 0), at_edges=True, width=320),
    Scene("Night", 1, 240, (20, 60), (0.4, 0.6), width=320,
          effects=("motion", "dark", "strong compression")),
    Scene("Empty", 1, 240, (0, 0), (0, 0), density=0.0, width=320),
)  # fmt: skip


@pytest.fixture(scope="session")
def whole_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_sample(tmp_path_factory.mktemp("sample") / "set").root


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ensure_sample` makes four small pictures only."""
    render = sample.render_set
    monkeypatch.setattr(sample, "render_set", lambda: render(FEW))


def load(root: Path, name: str) -> dict[str, np.ndarray]:
    return scipy.io.loadmat(root / "ground_truth" / f"wider_{name}_val.mat")


def rows(mat: dict[str, np.ndarray], field: str) -> list[np.ndarray]:
    """A nested cell field, picture after picture."""
    return [cell for event in mat[field][:, 0] for cell in event[:, 0]]


def picture_paths(root: Path) -> list[Path]:
    mat = load(root, "face")
    return [
        root / "WIDER_val" / "images" / str(event[0]) / f"{name[0]}.jpg"
        for event, names in zip(mat["event_list"][:, 0], mat["file_list"][:, 0], strict=True)
        for name in names[:, 0]
    ]


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_set_has_the_promised_size_and_layout(whole_set: Path) -> None:
    paths = picture_paths(whole_set)
    assert len(paths) >= 48
    assert len({path.parent for path in paths}) >= 6
    assert sorted(paths) == sorted((whole_set / "WIDER_val" / "images").rglob("*.jpg"))
    assert sum(path.stat().st_size for path in paths) < 20e6
    assert {cv2.imread(str(path)).shape[1] for path in paths} >= {1024, 640}


def test_mat_files_have_the_structure_of_the_real_ones(whole_set: Path, shared: Path) -> None:
    real_root = shared / "data" / "wider_val_mini"
    for name in MATS:
        real, ours = load(real_root, name), load(whole_set, name)
        assert real.keys() == ours.keys()
        for field in real.keys() - {"__header__", "__version__", "__globals__"}:
            assert ours[field].dtype == real[field].dtype == object
            assert ours[field].shape[1] == real[field].shape[1] == 1
        assert ours["event_list"][0, 0].shape == real["event_list"][0, 0].shape
        for field in ours.keys() & {"file_list", "face_bbx_list", "gt_list", "pose_label_list"}:
            theirs = {(cell.dtype.kind, cell.ndim) for cell in rows(real, field)}
            assert {(cell.dtype.kind, cell.ndim) for cell in rows(ours, field)} <= theirs
        assert {cell.dtype for cell in rows(ours, "face_bbx_list")} == {np.dtype(np.int32)}


def test_every_label_list_is_as_long_as_the_boxes(whole_set: Path) -> None:
    mat = load(whole_set, "face")
    lengths = [len(boxes) for boxes in rows(mat, "face_bbx_list")]
    labels = [field for field in mat if field.endswith("_label_list")]
    assert len(labels) == 6
    for field in labels:
        assert [cell.shape for cell in rows(mat, field)] == [(length, 1) for length in lengths]
    assert {int(x) for cell in rows(mat, "occlusion_label_list") for x in cell.flat} == {0, 1, 2}
    assert {int(x) for cell in rows(mat, "blur_label_list") for x in cell.flat} == {0, 1, 2}


def test_difficulties_nest_and_follow_face_height(whole_set: Path) -> None:
    lists = {name: rows(load(whole_set, name), "gt_list") for name in MATS[1:]}
    boxes = rows(load(whole_set, "face"), "face_bbx_list")
    for index, of_picture in enumerate(boxes):
        easy, medium, hard = (set(lists[name][index].ravel().tolist()) for name in MATS[1:])
        assert easy <= medium <= hard <= set(range(1, len(of_picture) + 1))
        for level, chosen in (("easy", easy), ("medium", medium), ("hard", hard)):
            heights = of_picture[np.array(sorted(chosen), int) - 1, 3]
            assert (heights >= DIFFICULTY_HEIGHTS[level]).all()
    totals = [sum(cell.size for cell in lists[name]) for name in MATS[1:]]
    assert totals[0] >= 150
    assert totals[1] >= 2 * totals[0]
    assert totals[2] >= 2 * totals[1]


def test_boxes_lie_inside_their_pictures(whole_set: Path) -> None:
    all_boxes = rows(load(whole_set, "face"), "face_bbx_list")
    for path, boxes in zip(picture_paths(whole_set), all_boxes, strict=True):
        height, width = cv2.imread(str(path)).shape[:2]
        assert (boxes >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= [width, height]).all()
        if "Empty" not in path.name:
            assert (boxes[:, 2:] >= 1).all()


def test_empty_pictures_carry_one_zero_box_that_never_counts(whole_set: Path) -> None:
    mat = load(whole_set, "face")
    empty = ["Empty" in path.name for path in picture_paths(whole_set)]
    assert sum(empty) >= 3
    for is_empty, boxes, invalid, hard in zip(
        empty,
        rows(mat, "face_bbx_list"),
        rows(mat, "invalid_label_list"),
        rows(load(whole_set, "hard"), "gt_list"),
        strict=True,
    ):
        if is_empty:
            assert boxes.tolist() == [[0, 0, 0, 0]]
            assert invalid.tolist() == [[1]]
            assert hard.size == 0
        else:
            assert hard.size > 0
            assert not invalid.any()


def test_the_same_bytes_each_time_whatever_the_threads(tmp_path: Path, few_scenes: None) -> None:
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        first = ensure_sample(tmp_path / "first").root
        cv2.setNumThreads(4)
        sample_photo.cutout.cache_clear()
        second = ensure_sample(tmp_path / "second").root
    finally:
        cv2.setNumThreads(threads)
    assert len(digest(first)) == 4 + 4 + 1
    assert digest(first) == digest(second)


def test_a_picture_does_not_depend_on_the_others(whole_set: Path) -> None:
    scene = next(scene for scene in SCENES if scene.event == "Edges")
    number = list(dict.fromkeys(s.event for s in SCENES)).index("Edges")
    picture = render_picture(scene, number, 1)
    path = whole_set / "WIDER_val" / "images" / picture.event / f"{picture.name}.jpg"
    assert path.read_bytes() == encode_jpeg(picture.pixels, sample._JPEG_QUALITY)


def test_a_second_call_makes_nothing(
    whole_set: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise AssertionError("the set is there: nothing is to be rendered")

    monkeypatch.setattr(sample, "render_set", fail)
    before = os.stat(whole_set).st_mtime_ns
    paths = ensure_sample(whole_set)
    assert paths.ground_truth == whole_set / "ground_truth"
    assert os.stat(whole_set).st_mtime_ns == before
    with pytest.raises(AssertionError, match="nothing is to be rendered"):
        ensure_sample(tmp_path / "elsewhere")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = sample.render_set

    def interrupted():
        yield next(render(FEW))
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "render_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_sample(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_an_hour(
    tmp_path: Path, few_scenes: None
) -> None:
    def leave(name: str, minutes: int) -> Path:
        event = tmp_path / name / "WIDER_val" / "images" / "0--Crowds"
        event.mkdir(parents=True)
        (event / "0_Crowds_1.jpg").write_bytes(b"half a pict")
        os.utime(tmp_path / name, (time.time() - 60 * minutes,) * 2)
        return tmp_path / name

    leave(".set[1].0123456789ab.partial", minutes=61)
    kept = [
        leave(".set[1].ba9876543210.partial", minutes=59),
        leave(".set1.0123456789ab.partial", minutes=61),
        leave(".set[1].notes.partial", minutes=61),
    ]
    root = ensure_sample(tmp_path / "set[1]").root
    assert sample.is_complete(root)
    assert sorted(tmp_path.iterdir()) == sorted([root, *kept])


@pytest.mark.parametrize("damage", ["picture", "mat", "version", "marker text"])
def test_a_damaged_or_older_set_is_made_anew(tmp_path: Path, few_scenes: None, damage: str) -> None:
    root = ensure_sample(tmp_path / "set").root
    whole = digest(root)
    if damage == "picture":
        picture_paths(root)[0].unlink()
    elif damage == "mat":
        (root / "ground_truth" / "wider_hard_val.mat").unlink()
    elif damage == "version":
        (root / sample.MARKER).write_text('{"version": "0", "pictures": 4}')
    else:
        (root / sample.MARKER).write_text("[]")
    assert not sample.is_complete(root)
    ensure_sample(root)
    assert digest(root) == whole
    assert list(tmp_path.iterdir()) == [root]


def make_few(directory: Path) -> None:
    scenes = FEW[:2]
    render = sample.render_set
    sample.render_set = lambda: render(scenes)
    ensure_sample(directory)


def test_two_processes_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=make_few, args=(tmp_path / "set",)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sample.is_complete(tmp_path / "set")
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_a_slower_process_keeps_the_set_of_the_faster_one(
    tmp_path: Path, few_scenes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster = ensure_sample(tmp_path / "faster").root
    render = sample.render_set

    def overtaken():
        yield from render()
        shutil.copytree(faster, tmp_path / "set")
        (tmp_path / "set" / "by-the-faster-one").touch()

    monkeypatch.setattr(sample, "render_set", overtaken)
    root = ensure_sample(tmp_path / "set").root
    assert (root / "by-the-faster-one").is_file()
    assert sorted(tmp_path.iterdir()) == [faster, root]


def test_what_somebody_else_put_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="not a sample set"):
        ensure_sample(tmp_path)
    with pytest.raises(UserError, match="not a sample set"):
        ensure_sample(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/set: .*name one that can"):
        ensure_sample(tmp_path / "file" / "set")


def test_a_matplotlib_without_its_sample_data_is_named(
    tmp_path: Path, few_scenes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.cbook

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(matplotlib.cbook, "get_sample_data", missing)
    sample_photo.photograph.cache_clear()
    sample_photo.cutout.cache_clear()
    with pytest.raises(UserError, match=r"grace_hopper\.jpg.*install matplotlib with pip"):
        ensure_sample(tmp_path / "set")

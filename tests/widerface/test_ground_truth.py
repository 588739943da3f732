"""Ground truth: the real files of the benchmark, and small damaged ones."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from cfdist.errors import UserError
from cfdist.widerface.ground_truth import (
    DIFFICULTIES,
    DIFFICULTY_FILES,
    FACES_FILE,
    GROUND_TRUTH_FILES,
    LABELS,
    load_face_labels,
    load_ground_truth,
)

EVENTS = {"0--Parade": ["a", "b"], "61--Street_Battle": ["c"]}
BOXES = [[[1, 2, 3, 4], [5, 6, 7, 8]], [[0, 0, 9, 9]], np.zeros((0, 4))]
COUNTED = {  # 1-based, a list a picture
    "easy": [[1], [], []],
    "medium": [[1, 2], [], []],
    "hard": [[2, 1], [1], []],
}


def cell(items) -> np.ndarray:
    """A MATLAB column of cells."""
    column = np.empty((len(items), 1), object)
    for index, item in enumerate(items):
        column[index, 0] = item
    return column


def by_event(items) -> np.ndarray:
    """A cell an event, holding a cell a picture."""
    items = iter(items)
    return cell([cell([next(items) for _ in files]) for files in EVENTS.values()])


def lists() -> dict[str, np.ndarray]:
    return {
        "event_list": cell(list(EVENTS)),
        "file_list": cell([cell(files) for files in EVENTS.values()]),
    }


def as_index(one_based) -> np.ndarray:
    return np.array(one_based, np.uint8).reshape(-1, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    boxes = by_event([np.array(picture, np.int32) for picture in BOXES])
    savemat(tmp_path / FACES_FILE, {**lists(), "face_bbx_list": boxes})
    for difficulty, indices in COUNTED.items():
        write_difficulty(tmp_path, difficulty, indices)
    return tmp_path


def write_difficulty(folder: Path, difficulty: str, indices, **changed) -> None:
    content = {**lists(), "gt_list": by_event(map(as_index, indices)), **changed}
    savemat(folder / f"wider_{difficulty}_val.mat", content)


def test_small_files(folder: Path):
    truth = load_ground_truth(folder)
    assert list(truth) == ["0--Parade/a", "0--Parade/b", "61--Street_Battle/c"]
    picture = truth["0--Parade/a"]
    assert picture.id == "0--Parade/a"
    assert picture.boxes.dtype == np.float64
    np.testing.assert_array_equal(picture.boxes, BOXES[0])
    np.testing.assert_array_equal(picture.counted, [[True, False], [True, True], [True, True]])
    np.testing.assert_array_equal(truth["0--Parade/b"].counted, [[False], [False], [True]])


@pytest.mark.parametrize("inside", ["", "eval_tools/ground_truth/"])
def test_an_archive_and_a_uri_hold_the_same(folder: Path, inside: str):
    path = folder / "eval_tools.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in GROUND_TRUTH_FILES:
            archive.write(folder / name, inside + name)
        archive.write(folder / FACES_FILE, f"__MACOSX/{FACES_FILE}")
    expected = load_ground_truth(folder)
    for source in (path, f"file://{path}", f"file://{folder}"):
        truth = load_ground_truth(source)
        assert list(truth) == list(expected)
        np.testing.assert_array_equal(truth["0--Parade/a"].boxes, BOXES[0])


def test_stores_without_ground_truth_are_named(folder: Path, tmp_path: Path):
    with zipfile.ZipFile(folder / "half.zip", "w") as archive:
        archive.write(folder / FACES_FILE, f"a/{FACES_FILE}")
    assert_user_error(folder / "half.zip", "half.zip lacks wider_easy_val.mat, wider_medium")
    (folder / "text").write_text("no archive")
    assert_user_error(folder / "text", "text: is not a zip archive", "give eval_tools.zip")
    with pytest.raises(UserError, match=r"nosuch://x: .*; give eval_tools.zip"):
        load_ground_truth("nosuch://x")


@pytest.mark.parametrize("name", ["..", "../a", "a/b", ".", "a\\b", "/a", "a\nb", "a\x01b"])
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: str):
    for event, picture in ((name, "a"), ("e", name)):
        events, files = cell([event, "f"]), cell([cell([picture, "b"]), cell(["c"])])
        boxes = by_event([np.array(one, np.int32) for one in BOXES])
        content = {"event_list": events, "file_list": files, "face_bbx_list": boxes}
        savemat(folder / FACES_FILE, content)
        assert_user_error(folder, FACES_FILE, "could lead elsewhere")


def test_picture_without_faces(folder: Path):
    picture = load_ground_truth(folder)["61--Street_Battle/c"]
    assert picture.boxes.shape == (0, 4)
    assert picture.counted.shape == (3, 0)


def test_real_files(shared: Path):
    mini = shared / "data/wider_val_mini"
    truth = load_ground_truth(mini / "ground_truth")
    assert len(truth) == 3226
    events = list(dict.fromkeys(id.split("/")[0] for id in truth))
    assert len(events) == 61
    assert events[0] == "0--Parade"
    assert "60" not in {event.split("--")[0] for event in events}
    assert sum(len(picture.boxes) for picture in truth.values()) == 39708
    counted = sum(np.count_nonzero(picture.counted, axis=1) for picture in truth.values())
    assert dict(zip(DIFFICULTIES, counted, strict=True)) == {
        "easy": 7211,
        "medium": 13319,
        "hard": 31958,
    }
    first = next(iter(truth.values()))
    assert first.id == "0--Parade/0_Parade_marchingband_1_465"
    np.testing.assert_array_equal(first.boxes[0], [345, 211, 4, 4])
    pictures = list((mini / "WIDER_val/images").glob("*/*.jpg"))
    assert len(pictures) == 610
    assert all(f"{path.parent.name}/{path.stem}" in truth for path in pictures)


def assert_user_error(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        load_ground_truth(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_folder(tmp_path: Path):
    assert_user_error(tmp_path / "nowhere", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", GROUND_TRUTH_FILES)
def test_missing_file(folder: Path, name: str):
    (folder / name).unlink()
    assert_user_error(folder, str(folder), name)


@pytest.mark.parametrize("name", GROUND_TRUTH_FILES)
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x00" * 300])
def test_not_a_matlab_file(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    assert_user_error(folder, str(folder / name))


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.999])
def test_file_cut_short(folder: Path, shared: Path, kept: float):
    path = folder / "wider_medium_val.mat"
    content = (shared / "data/wider_val_mini/ground_truth" / path.name).read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert_user_error(folder, str(path))


@pytest.mark.parametrize("bad", [0, 3])
def test_index_out_of_range(folder: Path, bad: int):
    write_difficulty(folder, "medium", [[1, bad], [], []])
    assert_user_error(folder, "wider_medium_val.mat", "0--Parade/a", "outside its 2 boxes")


def test_other_pictures_in_one_file(folder: Path):
    files = cell([cell(["a", "x"]), cell(["c"])])
    write_difficulty(folder, "hard", COUNTED["hard"], file_list=files)
    assert_user_error(folder, "wider_hard_val.mat", FACES_FILE, "do not list the same pictures")


def test_picture_listed_twice(folder: Path):
    content = loadmat(folder / FACES_FILE)
    content["file_list"] = cell([cell(["a", "a"]), cell(["c"])])
    savemat(folder / FACES_FILE, {k: v for k, v in content.items() if not k.startswith("__")})
    assert_user_error(folder, FACES_FILE, "twice")


def test_too_few_pictures_in_a_list(folder: Path):
    write_difficulty(folder, "easy", COUNTED["easy"], gt_list=cell([cell([as_index([1])])]))
    assert_user_error(folder, "wider_easy_val.mat", "gt_list holds 1 pictures, file_list 3")


@pytest.mark.parametrize("variable", ["gt_list", "event_list", "file_list"])
def test_missing_variable(folder: Path, variable: str):
    content = {**lists(), "gt_list": by_event(map(as_index, COUNTED["easy"]))}
    del content[variable]
    savemat(folder / DIFFICULTY_FILES[0], content)
    assert_user_error(folder, DIFFICULTY_FILES[0], variable)


def test_events_and_files_of_different_length(folder: Path):
    write_difficulty(folder, "easy", COUNTED["easy"], event_list=cell(["0--Parade"]))
    assert_user_error(folder, "wider_easy_val.mat", "event_list")


def test_boxes_of_wrong_shape(folder: Path):
    boxes = by_event([np.ones((2, 5)), np.ones((1, 4)), np.zeros((0, 4))])
    savemat(folder / FACES_FILE, {**lists(), "face_bbx_list": boxes})
    with pytest.raises(UserError, match=re.escape("shape (2, 5)")):
        load_ground_truth(folder)


def test_text_where_numbers_belong(folder: Path):
    write_difficulty(folder, "easy", COUNTED["easy"], gt_list=by_event(["one", "two", "three"]))
    assert_user_error(folder, "wider_easy_val.mat", "gt_list")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(folder: Path, bad: float):
    boxes = by_event([np.array([[1, 2, 3, bad]]), np.ones((1, 4)), np.zeros((0, 4))])
    savemat(folder / FACES_FILE, {**lists(), "face_bbx_list": boxes})
    assert_user_error(folder, FACES_FILE, "face_bbx_list holds a number that is not finite")


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(folder: Path):
    (folder / DIFFICULTY_FILES[1]).unlink()
    os.mkfifo(folder / DIFFICULTY_FILES[1])
    assert_user_error(folder, DIFFICULTY_FILES[1], "is a named pipe, not a file")


def with_labels(folder: Path, faces: list[int]) -> None:
    """Write labels of so many faces a picture beside the boxes: 0, 1, 2, ... by label and face."""
    content = {
        name: value for name, value in loadmat(folder / FACES_FILE).items() if name[0] != "_"
    }
    for number, label in enumerate(LABELS):
        values = [np.arange(number, number + count, dtype=np.uint8)[:, None] for count in faces]
        content[f"{label}_label_list"] = by_event(values)
    savemat(folder / FACES_FILE, content)


def test_labels_stand_beside_their_faces(folder):
    with_labels(folder, [len(boxes) for boxes in BOXES])
    labels = load_face_labels(folder, load_ground_truth(folder))
    assert [table.shape for table in labels.values()] == [(2, 6), (1, 6), (0, 6)]
    assert labels["0--Parade/a"].tolist() == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]


def test_without_labels_of_these_faces_there_are_none(folder):
    truth = load_ground_truth(folder)
    assert load_face_labels(folder, truth) == {}
    with_labels(folder, [1, 1, 0])
    assert load_face_labels(folder, truth) == {}

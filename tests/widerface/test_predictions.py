"""Prediction files: all the habits of writing them, damaged ones, and exact round trips."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cfdist.errors import UserError
from cfdist.widerface.predictions import (
    MAX_PREDICTION_BYTES,
    STYLES,
    TOO_LARGE,
    Style,
    find_prediction_files,
    prediction_text,
    read_predictions_file,
    rows,
)

BOXES = [[1.5, 2, 30, 40], [5, 6, 70, 80.25]]
SCORES = [0.9, 0.125]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "p.txt"


@pytest.mark.parametrize(
    "text",
    [
        "e/p.jpg\n2\n1.5 2 30 40 0.9\n5 6 70 80.25 0.125\n",
        "e/p.jpg\n1\n1.5 2 30 40 0.9\n5 6 70 80.25 0.125\n",
        "e/p.jpg\n0\n1.5 2 30 40 0.9\n5 6 70 80.25 0.125\n",
        "p\n2\n1.5 2 30 40 0.9\n5 6 70 80.25 0.125",
        "p \n2 \n1.5 2 30 40 0.9 \n5 6 70 80.25 0.125 \n",
        "p\r\n2\r\n1.5 2 30 40 0.9\r\n5 6 70 80.25 0.125\r\n",
        "p\n2\n5 6 70 80.25 0.125\n1.5 2 30 40 0.9\n",
        "p\n2\n1.5e0 2E0 3e+1 +40 9e-1\n5 6 70 8025e-2 .125\n",
        "p\n2\n1.5\t2  30 40 0.9\n\n5 6 70 80.25 0.125\n\n \n",
        "p\xe9\u4eba\n2\n1.5 2 30 40 0.9\n5 6 70 80.25 0.125\n",
    ],
    ids=[
        "official",
        "count-1",
        "count-0",
        "bare-name",
        "trailing-spaces",
        "crlf",
        "unsorted",
        "scientific",
        "tabs-and-blank-lines",
        "non-ascii-header",
    ],
)
def test_habits_of_writing(file: Path, text: str):
    file.write_bytes(text.encode())
    boxes, scores = read_predictions_file(file)
    assert (boxes.dtype, scores.dtype) == (np.float64, np.float64)
    assert boxes.tolist() == BOXES
    assert scores.tolist() == SCORES


@pytest.mark.parametrize("text", ["", "\n\n", "p\n0\n", "p\r\n0", "p\n0\n\n \n", "p\n1\n"])
def test_no_predictions(file: Path, text: str):
    file.write_bytes(text.encode())
    boxes, scores = read_predictions_file(file)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_equal_scores_keep_the_order_of_the_file(file: Path):
    file.write_text("p\n3\n1 0 1 1 0.5\n2 0 1 1 0.7\n3 0 1 1 0.5\n")
    assert read_predictions_file(file)[0][:, 0].tolist() == [2, 1, 3]


def test_negative_sizes_are_kept(file: Path):
    file.write_text("p\n1\n1 2 -3 -4 0.5\n")
    assert read_predictions_file(file)[0].tolist() == [[1, 2, -3, -4]]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("p\n3\n1 2 3 4 0.5\n1 2 3 4 0.5\n", ("line 2", "promises 3", "holds 2", "cut short")),
        ("p\n2\n", ("promises 2", "holds 0")),
        ("p\n", ("no second line",)),
        ("1 2 3 4 0.5\n1 2 3 4 0.5\n", ("line 2", "1 2 3 4 0.5", "number of predictions")),
        ("p\n-1\n", ("line 2",)),
        ("p\n1.0\n1 2 3 4 0.5\n", ("line 2",)),
        ("p\n" + "9" * 5000 + "\n", ("line 2",)),
        (
            "p\n2\n1 2 3 4 0.5\n1 2 3 4\n",
            ("line 4 is '1 2 3 4'", "expected five finite numbers: x y w h score"),
        ),
        ("p\n2\n1 2 3 4 0.5 6\n1 2 3 4\n", ("line 3 is '1 2 3 4 0.5 6'", "five")),
        ("p\n1\n1 2 3 0.5\n", ("line 3", "five")),
        ("p\n1\n1,2,3,4,0.5\n", ("line 3", "'1,2,3,4,0.5'")),
        ("p\n2\n\n1 2 three 4 0.5\n", ("line 4 is '1 2 three 4 0.5'", "numbers")),
        ("p\n1\n1 2 3 4 0.5#\n", ("line 3", "'1 2 3 4 0.5#'")),
        ("p\n1\n1_0 2 3 4 0.5\n", ("line 3", "'1_0 2 3 4 0.5'")),
        ("p\n2\n1 2 3 4 0.5\n1 nan 3 4 0.5\n", ("line 4 is '1 nan 3 4 0.5'", "finite")),
        ("p\n1\n1 2 3 4 -inf\n", ("line 3 is '1 2 3 4 -inf'", "finite")),
        ("p\n1\n1 2 3 4 1e999\n", ("line 3 is '1 2 3 4 1e999'", "finite")),
        ("p\n2\n1 2 3 4 .5\n1 2 1e300 4 .5\n", ("line 4 is '1 2 1e300 4 .5'", "below 1e+09")),
        ("p\n1\n-1e9 2 3 4 .5\n", ("line 3 is '-1e9 2 3 4 .5'", "below 1e+09")),
        ("p\n1\n1 2 3 4 1e20\n", ("line 3 is '1 2 3 4 1e20'", "below 1e+09")),
    ],
)
def test_damaged_files(file: Path, text: str, parts: tuple[str, ...]):
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_predictions_file(file)
    for part in (str(file), *parts):
        assert part in str(caught.value)


def test_missing_file(file: Path):
    with pytest.raises(UserError, match="cannot read prediction file"):
        read_predictions_file(file)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=60), st.text("0123456789.e- \n\r\t", max_size=60)))
@example(body=b"1 2 3\r4 5")
@example(body=b"1 2 3 4 5\x00")
def test_any_body_is_read_or_refused_politely(file: Path, body: bytes | str):
    file.write_bytes(b"p\n1\n" + (body if isinstance(body, bytes) else body.encode()))
    try:
        boxes, scores = read_predictions_file(file)
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert boxes.shape == (len(scores), 4)
        assert (np.abs(boxes) < TOO_LARGE).all()
        assert (np.abs(scores) < TOO_LARGE).all()
        assert (np.diff(scores) <= 0).all()


# --- Writing ----------------------------------------------------------------------------------

coordinate = st.floats(-1e6, 1e6, width=32)
detection = st.tuples(*[coordinate] * 4, st.floats(0, 1, width=32))


def detections(items) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(items, np.float32).reshape(-1, 5)
    return table[:, :4], table[:, 4]


def lines_of(table: np.ndarray, style: Style) -> list[str]:
    """The lines of a prediction file after the name and the count."""
    return prediction_text("e/p", table, style).splitlines()[2:]


def bits(table: np.ndarray) -> list[list[int]]:
    """Float64 as integers, so that -0.0 differs from 0.0."""
    return np.ascontiguousarray(table).view(np.int64).tolist()


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
@settings(deadline=None)
@given(items=st.lists(detection, max_size=20))
@example(items=[(0.0625, 0.25, -0.04, 0.35, 0.0005), (-0.0, 1e-30, 1e6, -1e6, 0.9999999)])
def test_rows_equal_their_text_bit_for_bit(style, items):
    table = rows(*detections(items), style)
    parsed = [[float(field) for field in line.split()] for line in lines_of(table, style)]
    assert bits(table) == bits(np.array(parsed, np.float64).reshape(-1, 5))


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(detection, max_size=20))
def test_reading_gives_what_was_written(file: Path, style, items):
    boxes, scores = detections(items)
    order = np.argsort(-scores, kind="stable")
    table = rows(boxes[order], scores[order], style)
    file.write_text(prediction_text("e/p", table, style))
    read_boxes, read_scores = read_predictions_file(file)
    assert bits(np.column_stack((read_boxes, read_scores))) == bits(table)


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
@settings(deadline=None)
@given(items=st.lists(detection, min_size=1, max_size=20))
def test_rounding_is_that_of_the_text(style, items):
    """Rounding first changes no character of the text of the numbers as they came.

    A size is a difference and may have more digits than float32: there the nearest decimal counts.
    """
    boxes, scores = detections(items)
    wide = boxes.astype(np.float64)
    sizes = wide[:, 2:] - wide[:, :2] + style.size_offset
    table = rows(boxes, scores, style)
    unrounded = np.column_stack((wide[:, :2], table[:, 2:4], scores.astype(np.float64)))
    assert lines_of(table, style) == lines_of(unrounded, style)
    half = 0.5 * 10.0**-style.box_decimals
    assert (np.abs(table[:, 2:4] - sizes) <= half + 1e-12 * (1 + np.abs(sizes))).all()


@pytest.mark.parametrize("index", range(3))
def test_guide_lines_equal_the_reference(shared: Path, index: int):
    with np.load(shared / f"golden/decode_{index}.npz") as golden:
        reference = golden["seed_dets"]
        lines = golden["seed_lines"].tolist()
    assert len(lines) == 200
    table = rows(reference[:, :4], reference[:, 4], STYLES["guide"])
    assert lines_of(table, STYLES["guide"]) == lines


def test_prediction_text():
    boxes = np.array([[10.06, 20, 30, 40.5]], np.float32)
    scores = np.array([0.12345678], np.float32)
    assert prediction_text(
        "0--Parade/a", rows(boxes, scores, STYLES["official"]), STYLES["official"]
    ) == ("0--Parade/a.jpg\n1\n10.060 20.000 19.940 20.500 0.123457\n")
    assert prediction_text(
        "0--Parade/a", rows(boxes, scores, STYLES["guide"]), STYLES["guide"]
    ) == ("0--Parade/a.jpg\n1\n10.1 20.0 20.9 21.5 0.123\n")
    nothing = rows(np.empty((0, 4), np.float32), np.empty(0, np.float32), STYLES["official"])
    assert nothing.shape == (0, 5)
    assert prediction_text("e/p", nothing, STYLES["official"]) == "e/p.jpg\n0\n"


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [([[0, 0, 1, np.nan]], [0.5]), ([[0, 0, 1, 1]], [np.inf]), ([[0, 0, 1, 1]], [0.5, 0.5])],
)
def test_rows_refuse_bad_arrays(boxes, scores):
    with pytest.raises(ValueError, match=r"finite|shape"):
        rows(np.array(boxes, np.float32), np.array(scores, np.float32), STYLES["official"])


# --- Finding ----------------------------------------------------------------------------------

IDS = ["1--B/y", "0--A/x.1", "0--A/z"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_in_the_folder_itself(tmp_path: Path):
    touch(tmp_path, "0--A/x.1.txt", "1--B/y.txt", "1--B/other.txt", "0--A/z.jpg", "notes.txt")
    there = find_prediction_files(tmp_path, iter(IDS))
    assert there.found == {"1--B/y": tmp_path / "1--B/y.txt", "0--A/x.1": tmp_path / "0--A/x.1.txt"}
    assert list(there.found) == IDS[:2]
    assert there.missing == ["0--A/z"]
    assert there.unknown == [tmp_path / "1--B/other.txt"]
    assert (there.others, there.renamed) == ([], [])


def test_find_in_a_wrapping_folder(tmp_path: Path):
    touch(tmp_path, *(f"run/{picture_id}.txt" for picture_id in IDS), "run.log", "empty/a/b.txt")
    there = find_prediction_files(tmp_path, IDS)
    assert there.found == {picture_id: tmp_path / f"run/{picture_id}.txt" for picture_id in IDS}
    assert (there.missing, there.unknown) == ([], [])


def test_files_of_known_pictures_that_are_not_wanted_are_set_apart(tmp_path: Path):
    touch(tmp_path, *(f"{id}.txt" for id in IDS))
    there = find_prediction_files(tmp_path, IDS[:1], known=IDS)
    assert list(there.found) == IDS[:1]
    assert there.others == [tmp_path / "0--A/x.1.txt", tmp_path / "0--A/z.txt"]
    assert there.unknown == []


@pytest.mark.parametrize(
    "names",
    [
        ["1--b/y.txt", "0--a/x.1.txt", "0--a/z.txt"],
        ["1--B/Y.txt", "0--A/X.1.TXT", "0--A/z.Txt"],
        ["1--B/y.jpg.txt", "0--A/x.1.jpg.txt", "0--A/z.JPG.txt"],
        ["1--B/y.png.txt", "0--A/x.1.jpeg.txt", "0--A/z .txt"],
        ["y.txt", "x.1.txt", "z.txt"],
        ["y.jpg.TXT", "X.1.txt", "z.txt"],
        ["texts/y.txt", "texts/x.1.txt", "texts/z.txt"],
        ["out/1--b/y.txt", "out/0--a/x.1.txt", "out/0--a/z.txt"],
        ["B/y.txt", "A/x.1.txt", "A/z.txt"],
    ],
    ids=[
        *("folders", "case", "jpg", "suffixes", "flat", "flat-mixed", "flat-inside", "wrapped"),
        "folders-of-other-names",
    ],
)
def test_names_that_fit_one_picture_only_are_taken(tmp_path: Path, names: list[str]):
    touch(tmp_path, *names)
    there = find_prediction_files(tmp_path, IDS)
    assert there.found == {id: tmp_path / name for id, name in zip(IDS, names, strict=True)}
    assert there.missing == []
    assert there.unknown == []
    exact = {tmp_path / f"{id}.txt" for id in IDS}
    assert there.renamed == [path for path in there.found.values() if path not in exact]
    assert there.renamed


def test_the_very_name_wins_over_one_that_is_close(tmp_path: Path):
    touch(tmp_path, *(f"{id}.txt" for id in IDS), "0--A/z.jpg.txt", "0--A/._z.txt")
    there = find_prediction_files(tmp_path, IDS)
    assert there.found["0--A/z"] == tmp_path / "0--A/z.txt"
    assert there.unknown == [tmp_path / "0--A/z.jpg.txt"]
    assert there.renamed == []


def test_a_name_that_fits_two_pictures_is_not_taken(tmp_path: Path):
    ids = ["0--A/same", "1--B/same", "1--B/one", "1--B/Case", "1--B/case", "1--B/two"]
    touch(tmp_path, "same.txt", "one.txt", "CASE.txt", "two.txt")
    there = find_prediction_files(tmp_path, ids)
    assert sorted(there.found) == ["1--B/one", "1--B/two"]
    assert there.unknown == [tmp_path / "CASE.txt", tmp_path / "same.txt"]


def test_an_event_s_folder_holds_no_other_event_s_pictures(tmp_path: Path):
    touch(tmp_path, "1--B/z.txt", "0--A/x.1.txt", "1--B/y.txt")
    there = find_prediction_files(tmp_path, IDS)
    assert there.missing == ["0--A/z"]
    assert there.unknown == [tmp_path / "1--B/z.txt"]


@pytest.mark.parametrize(
    "names", [["z.txt", "Z.TXT"], ["0--A/z.jpg.txt", "0--a/z.txt"], ["a/z.txt", "b/z.txt"]]
)
def test_two_files_that_fit_one_picture_are_refused(tmp_path: Path, names: list[str]):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match="both fit the picture 0--A/z; remove one") as caught:
        find_prediction_files(tmp_path, IDS)
    for name in names:
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("folder", ["0--A/", "", "wrapped/0--A/"])
def test_where_most_files_fit_no_picture_the_folder_is_refused(tmp_path: Path, folder: str):
    touch(tmp_path, *(f"{folder}{i}.txt" for i in range(4)), f"{folder}z.txt")
    with pytest.raises(UserError, match=r"4 of the 5 prediction files .* fit no picture") as caught:
        find_prediction_files(tmp_path, IDS)
    assert "0.txt" in str(caught.value)
    assert "1--B/y.txt" in str(caught.value)
    touch(tmp_path, f"{folder}x.1.txt")
    for i in (2, 3):
        (tmp_path / f"{folder}{i}.txt").unlink()
    assert len(find_prediction_files(tmp_path, IDS).unknown) == 2  # no more than half


names = st.text("aB.1- ", min_size=1, max_size=3).filter(lambda name: name.strip(" .") == name)


@pytest.mark.slow
@given(st.sets(st.tuples(names, names), min_size=1, max_size=8), st.data())
def test_each_picture_gets_the_file_that_was_written_for_it(tmp_path_factory, pairs, data):
    """Whatever else is there, a file of the very name is its picture's."""
    ids = sorted(f"{event}/{stem}" for event, stem in pairs)
    written = data.draw(st.sets(st.sampled_from(ids), min_size=1))
    folder = tmp_path_factory.mktemp("predictions")
    touch(folder, *(f"{id}.txt" for id in written))
    there = find_prediction_files(folder, ids)
    for id in written:
        assert there.found[id] == folder / f"{id}.txt"
    assert len(set(there.found.values())) == len(there.found)


def test_several_wrapping_folders_are_ambiguous(tmp_path: Path):
    touch(tmp_path, "first/0--A/z.txt", "second/0--A/z.txt")
    with pytest.raises(UserError, match=r"several prediction folders .* first, second"):
        find_prediction_files(tmp_path, IDS)


def test_folder_without_any_file_of_the_set(tmp_path: Path):
    touch(tmp_path, "0--A/other.txt", "x.txt")
    with pytest.raises(UserError, match="no prediction file of the wanted pictures"):
        find_prediction_files(tmp_path, IDS)
    touch(tmp_path, "0--A/z.txt", "1--B/y.txt")
    with pytest.raises(UserError, match=r"no prediction file of the wanted .* such as 0--A/x\.1"):
        find_prediction_files(tmp_path, IDS[1:2], known=IDS)


def test_missing_folder(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder; give"):
        find_prediction_files(tmp_path / "nowhere", IDS)


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"cannot read .*x\.txt: is a named pipe, not a file"):
        read_predictions_file(tmp_path / "x.txt")


def test_a_file_of_endless_lines_is_refused_by_its_size(tmp_path: Path):
    file = tmp_path / "p.txt"
    file.write_text("p\n999999999\n1 2 3 4 0.5\n")
    os.truncate(file, MAX_PREDICTION_BYTES + 1)
    with pytest.raises(UserError, match="are more than the"):
        read_predictions_file(file)

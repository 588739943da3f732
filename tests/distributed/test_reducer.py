"""The reducer's files and figures do not depend on the order of arrival."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist.decode import HeadMaps, decode_detections, select_peaks
from cfdist.detections import Detections, from_arrow, to_arrow
from cfdist.distributed.journal import Journal, RunIdentity
from cfdist.distributed.reducer import Begun, Reducer
from cfdist.errors import DiskFullError, UserError
from cfdist.files import JOURNAL
from cfdist.widerface.ground_truth import GroundTruth, PictureTruth
from cfdist.widerface.manifest import WorkItem
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import read_predictions_file

COUNT = 9
ORDER = tuple(f"e{i % 2}/p{i}" for i in range(COUNT))


def truth() -> GroundTruth:
    """Faces as large as what is found, and so many that some are hit."""
    random = np.random.default_rng(5)
    low, high = [0, 0, 25, 25], [450, 450, 68, 68]
    counted = np.ones((3, 60), bool)
    return {id: PictureTruth(id, random.uniform(low, high, (60, 4)), counted) for id in ORDER}


def key_of(number: int, pass_number: int) -> str:
    return WorkItem(ORDER[number], "", 0, pass_number).key


def detections(
    spec, numbers: list[int], failed: tuple[int, ...] = (), number: int = 1
) -> list[Detections]:
    """What a device finds in random head maps, each picture's own in each pass."""
    used = [i for i in numbers if i not in failed]
    maps = []
    for channels in HeadMaps.CHANNELS:
        shape = (channels, 20, 20)
        head = np.empty((len(used), *shape), np.float32)
        for row, i in enumerate(used):
            head[row] = np.random.default_rng([i, channels, number]).random(shape)
        maps.append(head)
    keys = [key_of(i, number) for i in used]
    sizes = np.full((len(used), 2), 500, np.int32)
    found = decode_detections(keys, sizes, select_peaks(HeadMaps(*maps), 30), spec)
    return found + [Detections(key_of(i, number), error="broken") for i in numbers if i in failed]


@pytest.fixture(scope="module")
def table(spec):
    """`detections`, as a device sends them."""

    def make(numbers: list[int], failed: tuple[int, ...] = (), number: int = 1):
        return to_arrow(detections(spec(height=80, width=80), numbers, failed, number))

    return make


def new_reducer(output, style: str = "official") -> Reducer:
    output.mkdir(exist_ok=True)
    reducer = Reducer()
    reducer.open(truth(), ORDER, output, RunIdentity("f", "openvino"), style)
    return reducer


def finished(reducer: Reducer, groups: list[list[int]], table):
    for numbers in groups:
        reducer.add(table(numbers, failed=(4,)))
    return reducer.finish()


def files_of(folder) -> dict[str, bytes]:
    """The lasting files of a run."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.parent.name != "journal"
    }


@pytest.mark.slow
def test_any_order_gives_the_same_bytes(table, tmp_path):
    one = finished(new_reducer(tmp_path / "a"), [[0, 1, 2], [3, 4, 5], [6, 7, 8]], table)
    other = finished(
        new_reducer(tmp_path / "b"), [[8], [5, 0, 7], [1], [2, 8, 3], [4, 6, 4]], table
    )
    assert (one.ap, one.failures) == (other.ap, other.failures)
    assert one.failures == ((ORDER[4], "broken"),)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert "predictions/e0/p0.txt" in files_of(tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize("style", ["official", "guide"])
def test_the_files_score_as_the_run_did(table, tmp_path, style):
    evaluation = finished(new_reducer(tmp_path / "a", style), [list(range(COUNT))], table)
    metric = WiderFaceMetric()
    for id in ORDER:
        path = tmp_path / "a" / "predictions" / f"{id}.txt"
        if id == ORDER[4]:
            assert not path.exists()
        else:
            metric.update(truth()[id], *read_predictions_file(path))
    assert metric.compute() == evaluation.ap


def test_parquet_holds_all_pictures_in_order(table, tmp_path):
    finished(new_reducer(tmp_path / "a"), [[5, 6, 7, 8], [0, 1, 2, 3, 4]], table)
    rows = from_arrow(pq.read_table(tmp_path / "a" / "predictions.parquet"))
    assert [row.id for row in rows] == list(ORDER)
    assert rows[4].error == "broken"
    assert rows[0].landmarks.shape[1:] == (5, 2)
    assert len(rows[0].landmarks) == len(rows[0].boxes) == len(rows[0].scores) > 0


def test_an_interrupted_run_goes_on(table, tmp_path):
    whole = finished(new_reducer(tmp_path / "a"), [list(range(COUNT))], table)
    first = new_reducer(tmp_path / "b")
    first.add(table([0, 1, 4], failed=(4,)))
    del first

    second = Reducer()
    begun = second.open(truth(), ORDER, tmp_path / "b", RunIdentity("f", "openvino"), "official")
    assert begun == Begun({ORDER[0], ORDER[1], ORDER[4]}, failed=1)
    resumed = finished(second, [[1, 2, 3], [5, 6, 7, 8]], table)

    assert resumed.ap == whole.ap
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.fixture(scope="module")
def first_pass(table, tmp_path_factory):
    """What a run of one pass, in which a picture fails, finds; and its folder."""
    folder = tmp_path_factory.mktemp("first")
    evaluation = finished(new_reducer(folder), [list(range(COUNT))], table)
    assert evaluation.ap["official"]["hard"] > 0
    return evaluation, folder


@pytest.mark.slow
@settings(max_examples=30)
@given(
    arrivals=st.permutations([(i, each) for i in range(COUNT) for each in (1, 2)]),
    interrupted=st.integers(0, 2 * COUNT),
)
def test_the_first_pass_counts_whenever_it_arrives(table, first_pass, arrivals, interrupted):
    """Another picture fails in the second pass, and all detections are others."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        for part in (arrivals[:interrupted], arrivals[interrupted:]):
            reducer = new_reducer(output)  # takes in what the journal holds
            for number, each in part:
                reducer.add(table([number], failed=(4,) if each == 1 else (6,), number=each))
        assert len(reducer.done) == 2 * COUNT
        evaluation = reducer.finish()
        expected, folder = first_pass
        assert (evaluation.ap, evaluation.failures) == (expected.ap, expected.failures)
        assert files_of(output) == files_of(folder)


def test_a_picture_is_taken_once_of_a_table_that_has_it_twice(table, first_pass, tmp_path):
    reducer = new_reducer(tmp_path)
    twice = pa.concat_tables([table([0, 1]), table([0])])
    reducer.add(twice.combine_chunks())
    finished(reducer, [[2, 3, 4, 5, 6, 7, 8]], table)
    assert files_of(tmp_path) == files_of(first_pass[1])


def test_the_journal_gets_the_new_pictures_of_a_table_alone(table, tmp_path):
    reducer = new_reducer(tmp_path)
    reducer.add(table([0, 1]))
    reducer.add(table([1, 2]))
    reducer.add(table([2]))
    journal = Journal(tmp_path / JOURNAL, RunIdentity("f", "openvino"))
    ids = [one.column("id").to_pylist() for one in journal.read()]
    assert ids == [[ORDER[0], ORDER[1]], [ORDER[2]]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["boxes", "scores"])
def test_a_picture_that_cannot_be_scored_has_failed_and_the_run_goes_on(
    table, tmp_path, value, what
):
    reducer = new_reducer(tmp_path)
    bad = from_arrow(table([0]))[0]
    numbers = getattr(bad, what).copy()
    numbers.flat[0] = value
    reducer.add(to_arrow([replace(bad, **{what: numbers}), *from_arrow(table([1]))]))
    assert reducer.done == {ORDER[0], ORDER[1]}

    resumed = new_reducer(tmp_path)  # the journal can be read again
    evaluation = finished(resumed, [[2, 3, 4, 5, 6, 7, 8]], table)
    assert evaluation.failures == (
        (ORDER[0], "a box or a score is not a finite number"),
        (ORDER[4], "broken"),
    )
    assert not (tmp_path / "predictions" / f"{ORDER[0]}.txt").exists()


def test_a_picture_is_not_done_before_its_file_is_written(table, tmp_path, monkeypatch):
    reducer = new_reducer(tmp_path)
    with monkeypatch.context() as patch:

        def refuse(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("cfdist.distributed.reducer.prediction_text", refuse)
        with pytest.raises(DiskFullError, match=f"{tmp_path}: .*No space left"):
            reducer.add(table([0]))
    assert reducer.done == set()
    reducer.add(table([0], number=2))  # tried again
    assert reducer.done == {ORDER[0], key_of(0, 2)}
    again = new_reducer(tmp_path)
    assert again.done == reducer.done
    rows = [id for one in again._journal.read() for id in one.column("id").to_pylist()]
    assert rows == [ORDER[0], key_of(0, 2)]  # each once


def test_a_disk_that_fails_once_gets_a_second_try(table, tmp_path, monkeypatch):
    reducer = new_reducer(tmp_path)
    real, failures = os.fsync, [errno.EIO]

    def fsync(descriptor):
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    reducer.add(table([0]))
    assert new_reducer(tmp_path).done == {ORDER[0]}
    failures += [errno.EIO, errno.EIO]
    with pytest.raises(UserError, match=r"journal: cannot be written \(Input/output error\)") as no:
        reducer.add(table([1]))
    assert not isinstance(no.value, DiskFullError)
    assert reducer.done == {ORDER[0]}


def test_a_journal_that_is_damaged_during_the_run_ends_it(table, tmp_path):
    reducer = new_reducer(tmp_path)
    reducer.add(table([0]))
    reducer.add(table([1]))
    (segment,) = (tmp_path / "journal").glob("segment-*")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.raises(UserError, match=r"journal: .*has lost 1 pictures"):
        reducer.finish()
    again = new_reducer(tmp_path)
    assert again.done == {ORDER[0]}
    (event,) = again.finish().events
    assert event.what == "journal_cut"
    assert "bytes were dropped" in event.text


def test_no_file_of_a_dropped_picture_stays(table, tmp_path):
    new_reducer(tmp_path).add(table([0, 1]))
    (segment,) = (tmp_path / "journal").glob("segment-*")
    segment.write_bytes(segment.read_bytes()[:-1])
    again = new_reducer(tmp_path)
    again.add(to_arrow([Detections(ORDER[1], error="broken")]))
    again.finish()
    assert [path.name for path in (tmp_path / "predictions").rglob("*.txt")] == []


def test_damage_is_told_of_the_first_pass_and_after_an_interruption(tmp_path):
    used = Detections(ORDER[0], damage="half", width=9, height=9)
    failed = Detections(ORDER[1], error="half", damage="half")
    again = replace(used, id=key_of(2, 2), damage="half")
    new_reducer(tmp_path).add(to_arrow([used, failed, again]))
    evaluation = new_reducer(tmp_path).finish()
    assert evaluation.damaged == tuple(sorted([(ORDER[0], "half"), (ORDER[1], "half")]))
    assert [id for id, _ in evaluation.failures] == [ORDER[1]]
    written = pq.read_table(tmp_path / "predictions.parquet")
    assert written.column("damage").to_pylist() == ["half", "half"]

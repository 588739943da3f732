"""The reducer's files and figures do not depend on the order of arrival."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from cfdist.decode import HeadMaps, Peaks, select_peaks
from cfdist.detections import from_arrow, to_arrow
from cfdist.distributed.device import PeaksBatch, decode_detections
from cfdist.distributed.reducer import Reducer
from cfdist.widerface.ground_truth import GroundTruth, PictureTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import read_predictions_file

COUNT = 9
ORDER = tuple(f"e{i % 2}/p{i}" for i in range(COUNT))


def truth() -> GroundTruth:
    random = np.random.default_rng(5)
    return GroundTruth(
        PictureTruth(id, random.integers(0, 500, (4, 4)).astype(float), np.ones((3, 4), bool))
        for id in ORDER
    )


def batch(numbers: list[int], failed: tuple[int, ...] = ()) -> PeaksBatch:
    """Peaks of random head maps, each picture's own."""
    used = [i for i in numbers if i not in failed]
    maps = []
    for channels in HeadMaps.CHANNELS:
        shape = (channels, 20, 20)
        maps.append(
            np.array([np.random.default_rng([i, channels]).random(shape) for i in used], np.float32)
        )
    return PeaksBatch(
        tuple(ORDER[i] for i in used),
        np.full((len(used), 2), 500, np.int32),
        select_peaks(HeadMaps(*maps), 30),
        tuple((ORDER[i], "broken") for i in numbers if i in failed),
    )


@pytest.fixture
def table(spec):
    """`batch`, as a device sends it."""

    def make(numbers: list[int], failed: tuple[int, ...] = ()):
        return to_arrow(decode_detections(batch(numbers, failed), spec(height=80, width=80)))

    return make


def new_reducer(output, style: str = "official") -> Reducer:
    output.mkdir(exist_ok=True)
    return Reducer(truth(), ORDER, output, "f", style)


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


def test_any_order_gives_the_same_bytes(table, tmp_path):
    one = finished(new_reducer(tmp_path / "a"), [[0, 1, 2], [3, 4, 5], [6, 7, 8]], table)
    other = finished(
        new_reducer(tmp_path / "b"), [[8], [5, 0, 7], [1], [2, 8, 3], [4, 6, 4]], table
    )
    assert (one.ap, one.failures) == (other.ap, other.failures)
    assert one.failures == ((ORDER[4], "broken"),)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert "predictions/e0/p0.txt" in files_of(tmp_path / "a")


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

    second = new_reducer(tmp_path / "b")
    assert second.done() == {ORDER[0], ORDER[1], ORDER[4]}
    resumed = finished(second, [[1, 2, 3], [5, 6, 7, 8]], table)

    assert resumed.ap == whole.ap
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_outputs_that_are_not_finite_fail_the_picture(spec):
    result = batch([0, 1])
    result.peaks.values[1, 0, 0] = np.nan
    peaks = Peaks(result.peaks.score, result.peaks.cell, result.peaks.values, 20)
    good, bad = decode_detections(
        PeaksBatch(result.ids, result.sizes, peaks, ()), spec(height=80, width=80)
    )
    assert good.error is None
    assert len(good.boxes) > 0
    assert bad.error == "the model's outputs are not finite numbers"

"""One picture after another: what is timed, and what is no measurement."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.throughput import latency
from cfdist.throughput.latency import Latencies, SingleStreamDevice
from cfdist.throughput.sampling import Sample
from cfdist.widerface.manifest import WorkItem


@pytest.fixture
def items(tmp_path) -> list[WorkItem]:
    """Two pictures, and between them a file that is none."""
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in (paths[0], paths[2]):
        cv2.imwrite(str(path), np.zeros((40, 30, 3), np.uint8))
    paths[1].write_bytes(b"no picture")
    return [WorkItem(f"e/{i}", str(path), 9) for i, path in enumerate(paths)]


def measured(spec, items, pictures: int, min_seconds: float = 0, **options) -> Latencies:
    options = {"latency_ms": 2.0, "preset": None} | options
    model = BackendModel("simulated", spec(height=64, width=64, batch=1), options)
    device = SingleStreamDevice(model, DeviceSettings(1, 1), pictures, min_seconds)
    device.warm_up()
    try:
        return device.process(items)
    finally:
        device.close()


def test_each_step_of_each_picture_is_timed(spec, items):
    found = measured(spec, items, 5)
    assert found.ms.shape == (5, 3)
    assert (found.ms > 0).all() and (found.ms[:, 1] >= 2).all()
    np.testing.assert_allclose(found.whole_ms, found.ms.sum(axis=1))
    # One after the other: their times add up to the whole, but for the picture that failed.
    assert found.whole_ms.sum() <= 1000 * found.seconds
    ((picture, reason),) = found.failures
    assert picture == "e/1" and reason


def test_pictures_are_repeated_for_the_least_time(spec, items, monkeypatch):
    ticks = itertools.count()  # of a clock that others look at as well
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(ticks)))
    assert len(measured(spec, items[:1], 1).ms) == 1
    found = measured(spec, items[:1], 1, min_seconds=400)
    assert len(found.ms) > 10
    assert found.seconds >= 400 > found.seconds - found.whole_ms[-1] / 1000 - 1


def test_of_very_many_pictures_a_part_is_kept(spec, items, monkeypatch):
    monkeypatch.setattr(latency, "Sample", lambda columns: Sample(columns, most=20))
    found = measured(spec, items[:1], 150, latency_ms=0.0)
    assert (found.ms.shape, found.pictures, found.missing_seconds) == ((20, 3), 150, None)


def test_where_every_picture_fails_there_is_an_end(spec, items):
    found = measured(spec, items[1:2], 5, min_seconds=60)
    assert (len(found.ms), len(found.failures)) == (0, 1)
    found = measured(spec, items[::2], 5, fault="nan", fault_device=None, fault_after=0)
    assert (len(found.ms), len(found.failures)) == (0, 2)
    assert "NaN" in found.failures[0][1]


@pytest.mark.parametrize("use_damaged", [True, False])
def test_damaged_files_are_named_whether_they_are_used_or_not(spec, items, use_damaged):
    half = Path(items[0].path)
    half.write_bytes(half.read_bytes()[:-10])
    items = [replace(item, use_damaged=use_damaged) for item in items[::2]]
    found = measured(spec, items, 4)
    ((id, damage),) = found.damaged
    assert id == "e/0" and "JPEG" in damage
    assert len(found.failures) == (not use_damaged)


def test_how_long_a_run_with_enough_pictures_takes():
    assert Latencies(np.ones((100, 3)), 100, 9.0, (), (), "CPU").missing_seconds is None
    assert Latencies(np.ones((99, 3)), 99, 9.9, (), (), "CPU").missing_seconds == pytest.approx(
        10.0
    )

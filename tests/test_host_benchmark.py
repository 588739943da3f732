"""Reading pictures by several numbers of threads."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest

from cfdist import host_benchmark
from cfdist.host_benchmark import PICTURES_A_FEEDER, feeder_counts, find_usable, measure
from cfdist.machine import SWITCH_SECONDS
from cfdist.widerface.manifest import WorkItem


@pytest.fixture
def items(tmp_path) -> list[WorkItem]:
    """Five pictures, the second of which is none, the fourth of which is gone."""
    items = []
    for i in range(5):
        path = tmp_path / f"{i}.jpg"
        cv2.imwrite(str(path), np.full((40, 60, 3), 50 * i, np.uint8))
        items.append(WorkItem(f"e/{i}", str(path), path.stat().st_size))
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    (tmp_path / "3.jpg").unlink()
    return items


@pytest.mark.parametrize(
    ("cores", "configured", "counts"),
    [
        (1, None, [1]),
        (2, None, [1, 2]),
        (6, None, [1, 2, 4, 6]),
        (8, 8, [1, 2, 4, 8]),
        (4, 3, [1, 2, 3, 4]),
        (2, 16, [1, 2, 16]),
    ],
)
def test_feeder_counts_double_up_to_the_cores(cores, configured, counts):
    assert feeder_counts(cores, configured) == counts


def test_bad_pictures_are_known_before_the_clock_runs(items):
    usable, failures = find_usable(items, 32, 32, feeders=2)
    assert [item.id for item in usable] == ["e/0", "e/2", "e/4"]
    assert [id for id, _ in failures] == ["e/1", "e/3"]
    assert "not a picture" in failures[0][1]
    assert "No such file" in failures[1][1]


@pytest.mark.parametrize("feeders", [1, 3])
def test_every_picture_is_read_and_each_feeder_has_enough(items, monkeypatch, feeders):
    usable, _ = find_usable(items, 32, 32, feeders=1)
    read = []

    def read_into(path, row):
        assert row.shape == (32, 48, 3)
        read.append(path)
        return (1, 1)

    monkeypatch.setattr(host_benchmark, "read_into", read_into)
    threads = cv2.getNumThreads()
    rate = measure(usable, 32, 48, feeders)
    assert cv2.getNumThreads() == threads
    assert rate.feeders == feeders
    assert rate.pictures == len(read) == PICTURES_A_FEEDER * feeders
    counts = [read.count(item.path) for item in usable]
    assert max(counts) - min(counts) <= 1


def test_feeders_wait_for_python_as_long_as_in_a_device(items, monkeypatch):
    intervals = set()

    def read_into(path, row):
        intervals.add(sys.getswitchinterval())
        return (1, 1)

    monkeypatch.setattr(host_benchmark, "read_into", read_into)
    before = sys.getswitchinterval()
    measure(items[:1], 32, 32, feeders=2)
    assert intervals == {SWITCH_SECONDS}
    assert sys.getswitchinterval() == before


def test_the_rate_is_that_of_real_reading(items):
    usable, _ = find_usable(items, 320, 320, feeders=1)
    rate = measure(usable * 20, 320, 320, feeders=2)
    assert rate.pictures == 60
    assert rate.pictures_per_second > 0
    assert rate.cpu_ms_per_picture > 0

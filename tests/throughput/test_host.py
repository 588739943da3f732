"""Reading pictures by several numbers of threads."""

from __future__ import annotations

import sys
import threading

import cv2
import numpy as np
import pytest

from cfdist.devices import reader
from cfdist.devices.reader import SWITCH_SECONDS
from cfdist.errors import UserError
from cfdist.throughput.host import (
    PICTURES_A_READER,
    find_usable,
    measure,
    measure_host,
    planned_readers,
    reader_counts,
)
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
    ("cores", "planned", "counts"),
    [
        (1, None, [1]),
        (2, None, [1, 2]),
        (6, None, [1, 2, 4, 6]),
        (8, 8, [1, 2, 4, 8]),
        (4, 3, [1, 2, 3, 4]),
        (2, 16, [1, 2, 16]),
    ],
)
def test_reader_counts_double_up_to_the_cores(cores, planned, counts):
    assert reader_counts(cores, planned) == counts


def test_bad_pictures_are_known_before_the_clock_runs(items):
    usable, failures = find_usable(items, (32, 32), readers=2)
    assert [item.id for item in usable] == ["e/0", "e/2", "e/4"]
    assert [id for id, _ in failures] == ["e/1", "e/3"]
    assert "not a picture" in failures[0][1]
    assert "No such file" in failures[1][1]


@pytest.mark.parametrize("readers", [1, 3])
def test_every_picture_is_read_and_each_reader_has_enough(items, monkeypatch, readers):
    usable, _ = find_usable(items, (32, 32), readers=1)
    read = []

    def read_into(path, row):
        assert row.shape == (32, 48, 3)
        read.append(path)
        return (1, 1)

    monkeypatch.setattr(reader, "read_into", read_into)
    threads = cv2.getNumThreads()
    rate = measure(usable, (48, 32), readers)
    assert cv2.getNumThreads() == threads
    assert rate.readers == readers
    assert rate.pictures == len(read) == PICTURES_A_READER * readers
    counts = [read.count(item.path) for item in usable]
    assert max(counts) - min(counts) <= 1


def test_readers_wait_for_python_as_long_as_in_a_device(items, monkeypatch):
    intervals = set()

    def read_into(path, row):
        intervals.add(sys.getswitchinterval())
        return (1, 1)

    monkeypatch.setattr(reader, "read_into", read_into)
    before = sys.getswitchinterval()
    measure(items[:1], (32, 32), readers=2)
    assert intervals == {SWITCH_SECONDS}
    assert sys.getswitchinterval() == before


def test_the_rate_is_that_of_real_reading(items):
    usable, _ = find_usable(items, (320, 320), readers=1)
    rate = measure(usable * 20, (320, 320), readers=2)
    assert rate.pictures == 60
    assert rate.pictures_per_second > 0
    assert rate.cpu_ms_per_picture > 0


def test_the_pictures_are_repeated_and_bad_ones_are_in_no_rate(items):
    figures = measure_host(items, 50, (32, 32), [1, 2])
    assert [(rate.readers, rate.pictures) for rate in figures.rates] == [(1, 50), (2, 50)]
    assert [key for key, _ in figures.failures] == ["e/1", "e/3"]
    with pytest.raises(UserError, match="none of its 1 pictures can be read; the first: not a"):
        measure_host(items[1:2], 50, (32, 32), [1])


def test_more_readers_than_a_chunk_has_pictures_work_at_once(items, monkeypatch):
    together = threading.Barrier(40, timeout=30)

    def read_into(path, row):
        together.wait()
        return (1, 1)

    monkeypatch.setattr(reader, "read_into", read_into)
    assert measure(items[:1], (32, 32), readers=40).pictures == 40 * PICTURES_A_READER


@pytest.mark.parametrize(
    ("readers", "devices", "kind", "planned"),
    [
        ("auto", 4, "npu", None),
        (3, "auto", "npu", None),
        (3, "auto", "cpu", 6),
        (3, 4, "npu", 12),
        (3, [0, 5], "npu", 6),
        (1024, 2, "npu", 1024),
    ],
)
def test_the_readers_of_a_run(readers, devices, kind, planned):
    assert planned_readers(readers, devices, kind, cores=16) == planned

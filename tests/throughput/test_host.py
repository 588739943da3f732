"""Reading pictures by several numbers of threads."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.devices.reader import SWITCH_SECONDS
from cfdist.errors import UserError
from cfdist.preprocess import StoredPicture
from cfdist.throughput import host
from cfdist.throughput.host import (
    PICTURES_A_READER,
    Faults,
    HostRate,
    measure_host,
    read_pictures,
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


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6])])
def test_reader_counts_double_up_to_the_cores(cores, counts):
    assert reader_counts(cores, "auto", "auto", "cpu") == counts


@pytest.mark.parametrize(
    ("readers", "devices", "kind", "planned"),
    [
        ("auto", 4, "npu", None),
        (3, "auto", "npu", None),
        (3, "auto", "cpu", 6),
        (3, 4, "npu", 12),
        (3, [0, 5], "npu", 6),
        (1024, 2, "npu", 1024),
        (4, 2, "npu", 8),
    ],
)
def test_the_readers_of_a_run_are_among_them(readers, devices, kind, planned):
    known = {planned} if planned else set()
    assert reader_counts(16, readers, devices, kind) == sorted({1, 2, 4, 8, 16} | known)


def test_bad_pictures_are_listed_in_order_and_in_no_rate(items):
    _, (failures, damaged) = read_pictures(items, (32, 32), readers=2)
    assert [key for key, _ in failures] == ["e/1", "e/3"]
    assert "not a picture" in failures[0][1]
    assert "No such file" in failures[1][1]
    rates, faults = measure_host(items, 50, (32, 32), [1, 2])
    assert [(rate.readers, rate.pictures) for rate in rates] == [(1, 50), (2, 50)]
    assert faults == (failures, damaged) == (failures, ())
    with pytest.raises(UserError, match="none of its 1 pictures can be read; the first, e/1: "):
        measure_host(items[1:2], 50, (32, 32), [1])


@pytest.mark.parametrize("use_damaged", [True, False])
def test_damaged_files_are_named_whether_they_are_used_or_not(items, use_damaged):
    items = [replace(item, use_damaged=use_damaged) for item in items[::2]]
    for item in items[1:]:
        content = Path(item.path).read_bytes()
        Path(item.path).write_bytes(content[: len(content) - 40])
    rates, faults = measure_host(items, 50, (32, 32), [1, 2])
    assert [key for key, _ in faults.damaged] == ["e/2", "e/4"]
    assert all("JPEG" in why for _, why in faults.damaged)
    assert faults.failures == (() if use_damaged else faults.damaged)
    assert [rate.pictures for rate in rates] == [50, 50]


def test_pictures_that_go_while_they_are_read_are_in_no_rate(items, monkeypatch):
    read, calls = host.read_pictures, []

    def gone_at_last(work, size, readers, count=None):
        calls.append(readers)
        if len(calls) == 3:
            for item in items[::2]:
                Path(item.path).unlink()
        return read(work, size, readers, count)

    monkeypatch.setattr(host, "read_pictures", gone_at_last)
    with pytest.raises(
        UserError, match=r"e/0 could be read a moment ago, and no longer: .*No such"
    ):
        measure_host(items, 50, (32, 32), [1, 2])


@pytest.mark.parametrize("readers", [1, 3])
def test_every_picture_is_read_and_each_reader_has_enough(items, monkeypatch, readers):
    usable = items[::2]
    read = []

    def fill(source, row):
        assert row.shape == (32, 48, 3)
        read.append(source.path)
        return StoredPicture((1, 1))

    monkeypatch.setattr(WorkItem, "fill", fill)
    threads = cv2.getNumThreads()
    (rate,), _ = measure_host(usable, 3, (48, 32), [readers])
    assert cv2.getNumThreads() == threads
    assert rate.readers == readers
    assert rate.pictures == len(read) - 3 == PICTURES_A_READER * readers
    counts = [read.count(item.path) for item in usable]
    assert max(counts) - min(counts) <= 1


def test_reading_goes_on_for_the_least_time(items, monkeypatch):
    counts = []

    def read(work, size, readers, count=None):
        counts.append(count or len(work))
        return HostRate(readers, counts[-1], 100.0, 1.0), Faults()

    monkeypatch.setattr(host, "read_pictures", read)
    (rate,), _ = measure_host(items[::2], 50, (48, 32), [1], min_seconds=2.0)
    assert counts[:2] == [3, 50]
    assert 200 <= counts[2] == rate.pictures < 250


def test_readers_wait_for_python_as_long_as_in_a_device(items, monkeypatch):
    intervals = set()

    def fill(source, row):
        intervals.add(sys.getswitchinterval())
        return StoredPicture((1, 1))

    monkeypatch.setattr(WorkItem, "fill", fill)
    before = sys.getswitchinterval()
    read_pictures(items, (32, 32), readers=2)
    assert intervals == {SWITCH_SECONDS}
    assert sys.getswitchinterval() == before


def test_the_rate_is_that_of_real_reading(items):
    rate, faults = read_pictures(items[::2] * 20, (320, 320), readers=2)
    assert rate.pictures == 60
    assert rate.pictures_per_second > 0
    assert rate.cpu_ms_per_picture > 0
    assert faults == ((), ())


def test_more_readers_than_a_chunk_has_pictures_work_at_once(items, monkeypatch):
    together = threading.Barrier(40, timeout=30)

    def fill(source, row):
        together.wait()
        return StoredPicture((1, 1))

    monkeypatch.setattr(WorkItem, "fill", fill)
    assert read_pictures(items[:1] * 80, (32, 32), readers=40)[0].pictures == 80

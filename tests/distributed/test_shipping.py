"""Pictures and weights through Ray's object store."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.devices.reader import Reader, ShippedPicture
from cfdist.distributed import shipping
from cfdist.distributed.shipping import (
    content_block,
    read,
    read_here,
    reading_stage,
    ship_model,
    shipped_work,
)
from cfdist.distributed.work import (
    KeptPictures,
    kept_work,
    letterbox,
    letterboxing_work,
    sources_of,
)
from cfdist.widerface.manifest import WorkItem

SIZE = (64, 32)


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[WorkItem]:
    """Eight pictures, each larger than the one before."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for i in range(8):
        path = folder / f"{i}.jpg"
        cv2.imwrite(str(path), np.full((120 + i, 130, 3), 20 * i, np.uint8))
        found.append(WorkItem(f"e/{i}", str(path), path.stat().st_size))
    return found


pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def here(items, tmp_path) -> list[WorkItem]:
    """Pictures, one of which is damaged and one is not there."""
    half = tmp_path / "half.jpg"
    half.write_bytes(Path(items[0].path).read_bytes()[:-200])
    gone = WorkItem("e/gone", str(tmp_path / "no"), 5)
    return [*items[:5], WorkItem("e/half", str(half), 10, 2, use_damaged=True), gone]


def rows(work, size: int) -> list:
    import ray

    found = []
    while True:
        work.wait()
        assert not work.is_waiting
        slices = work.take(size)
        if not slices:
            return found
        found += sources_of(slices, ray.get([one.block for one in slices]))


def letterboxed(sources) -> tuple:
    reader = Reader(SIZE, threads=2, rows=32, buffers=1)
    with reader.read(sources) as read:
        found = read.keys, read.sizes.tolist(), read.letterboxed.tobytes(), read.failures
        found = *found, dict(read.damages), reader.decoded
    reader.close()
    return found


@pytest.mark.parametrize(("least", "size"), [(1, 1), (2, 4), (4, 3), (3, 100)])
def test_shipped_pictures_are_those_of_the_files(here, least, size):
    found = rows(shipped_work(here, least), size)
    assert all(isinstance(one, ShippedPicture) for one in found)
    assert [one.item for one in found] == here
    assert letterboxed(found) == letterboxed(here)


def test_a_stage_reads_on_the_driver_s_node(here):
    work = letterboxing_work(here, SIZE, 1, add_reading=reading_stage)
    *expected, decoded = letterboxed(here)
    *found, ready = letterboxed(rows(work, 3))
    assert found == expected
    assert (decoded, ready) == (6, 6)


def test_no_work_is_no_work():
    assert rows(shipped_work([], 4), 4) == []


def test_a_block_is_whole_batches_unless_it_is_the_last(items, monkeypatch):
    held, read = threading.Event(), shipping._read
    slow = {item.path for item in items[5:]}

    def wait(path):
        if path in slow:
            held.wait(20)
        return read(path)

    monkeypatch.setattr(shipping, "_read", wait)
    work = shipped_work(items[:8], 2)
    work.wait()
    while work._ready() < 5:
        pass
    assert [len(one) for one in work.take(8)] == [4]  # the fifth waits for its batch
    assert work.is_waiting
    assert work.take(8) == []
    held.set()
    work.wait()
    while work._ready() < 4:
        pass
    assert [len(one) for one in work.take(8)] == [4]


def test_what_is_read_ahead_is_bounded(items, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(shipping, "_read", lambda path: read.append(path) or (b"", None))
    monkeypatch.setattr(shipping, "AHEAD_ROWS", 10)
    many = [replace(items[0], id=f"e/{i}") for i in range(1000)]
    work = shipped_work(many, 4)
    work.wait()
    assert len(work._reading) == 10
    work.take(4)
    assert len(work._reading) == 10
    work.close()
    large = [replace(item, size=shipping.AHEAD_BYTES) for item in many]
    assert len(shipped_work(large, 4)._reading) == 4


def test_blocks_are_gone_once_their_rows_are_done(items):
    from ray._private.worker import global_worker

    def held() -> int:
        return len(global_worker.core_worker.get_all_reference_counts())

    work = shipped_work([replace(items[0], id=f"e/{i}") for i in range(300)], 8)
    before = held()
    taken = 0
    while taken < 300:
        work.wait()
        (one,) = work.take(8)
        taken += len(one)
        assert held() <= before + 1
        del one
    assert held() <= before


def test_letterboxed_contents_are_letterboxed_files(here):
    from_files = letterbox(table_of(here), SIZE)
    from_contents = letterbox(read(table_of(here)), SIZE)
    assert from_contents.equals(from_files)


def table_of(items):
    return content_block(items, [(None, None)] * len(items)).drop_columns(
        ["content", "content_error"]
    )


def test_a_device_loads_a_model_that_it_does_not_see(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = Path(shutil.copy(spec().path, tmp_path / "m.onnx"))
    given = spec(own, height=64, width=64, batch=1)
    model = ship_model(BackendModel("openvino", given, {"precision": "f32"}))
    own.unlink()
    backend = model.load(DeviceSettings(1, 1))
    backend.close()
    assert [path.name for path in tmp_path.rglob("*.onnx")] == ["m.onnx"]


def test_a_row_that_is_kept_no_longer_is_read_here_and_not_by_the_device(here):
    import ray

    kept = KeptPictures("fingerprint", SIZE)
    work = kept_work(here, kept)
    work.read_here = read_here
    refuse = None  # a device letterboxes nothing
    slices = work.letterbox(work.take(100), refuse)
    found = sources_of(slices, ray.get([one.block for one in slices]))
    assert [one.item for one in found] == here
    assert letterboxed(found) == letterboxed(here)
    assert not work.is_read_by_device(slices)
    work.settle(slices, is_finished=True)
    assert kept.rows == {}  # files, not pixels

"""A pool of real Ray actors: devices that die, refuse, or never get ready."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfdist.devices.base import DeviceReport
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.pool import MAX_RESTARTS, DevicePool
from cfdist.distributed.work import item_work
from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem

pytestmark = pytest.mark.usefixtures("ray_session")


def items_of(count: int) -> list[WorkItem]:
    return [WorkItem(f"e/{i}", "", 0) for i in range(count)]


class DyingDevice:
    """A device whose process dies while it loads, a number of times; then it works."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder = folder
        self.deaths = deaths

    def warm_up(self) -> None:
        count = len(list(self.folder.iterdir()))
        if count < self.deaths:
            (self.folder / f"{os.getpid()}").touch()
            os._exit(1)

    def process(self, chunk):
        return [item.id for item in chunk]

    def report(self) -> DeviceReport:
        return DeviceReport()

    def close(self) -> None:
        pass


class RefusingDevice(DyingDevice):
    """A device that takes no chunk and notes each that it was given."""

    def process(self, chunk):
        (self.folder / chunk[0].id.replace("/", "_")).touch()
        raise UserError("model.batch=2: does not fit the device's memory")


@pytest.fixture(autouse=True)
def classes_by_value():
    """Ray's workers cannot import this module."""
    import sys

    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def pool_of(device: DyingDevice) -> DevicePool:
    return DevicePool(plan_devices("cpu", 1, readers=1), lambda settings: device, 2)


def test_a_refused_chunk_ends_the_round(tmp_path):
    with pool_of(RefusingDevice(tmp_path, 0)) as pool:
        pool.start()
        with pytest.raises(UserError, match="does not fit the device's memory"):
            pool.run_round(item_work(items_of(200)), lambda *_: None)
    # Only the chunks that were on their way.
    assert len(list(tmp_path.iterdir())) <= pool.plan.max_in_flight
    assert pool.lost == []


def test_a_device_that_dies_while_loading_is_started_again(tmp_path):
    found = []
    with pool_of(DyingDevice(tmp_path, deaths=2)) as pool:
        pool.start()
        work = item_work(items_of(5))
        assert pool.run_round(work, lambda name, ids: found.extend((name, id) for id in ids)) == []
    assert sorted(found) == [("device:0", f"e/{i}") for i in range(5)]
    assert pool.lost == ["device:0", "device:0"]


def test_a_device_that_always_dies_while_loading_ends_the_run(tmp_path):
    import ray

    with pool_of(DyingDevice(tmp_path, deaths=100)) as pool:
        with pytest.raises(ray.exceptions.RayActorError):
            pool.start()
        assert len(pool.lost) == MAX_RESTARTS + 1
    assert pool.actors == {}

"""Pools of devices that fail in one way or another, for tests."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cfdist.devices.base import DeviceReport
from cfdist.distributed.dealing import deal_out
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.pool import DevicePool
from cfdist.distributed.work import item_work
from cfdist.widerface.manifest import WorkItem


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


@pytest.fixture(autouse=True)
def classes_by_value(request):
    """Ray's workers cannot import the modules of tests."""
    from ray import cloudpickle

    modules = sys.modules[__name__], request.module
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def pool_of(device: DyingDevice, count: int = 1, **limits) -> DevicePool:
    plan = replace(plan_devices("cpu", count, readers=1), **limits)
    return DevicePool(plan, lambda settings: device, 2)


def run(pool: DevicePool, count: int, on_done=lambda *_: None):
    items = items_of(count)
    return deal_out(pool, item_work(items), [item.key for item in items], on_done)


def whats(pool: DevicePool) -> list[str]:
    return [event.what for event in pool.events]

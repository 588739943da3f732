"""Chunks of a comparison come into the sums, and failed pictures are given up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cfdist.backends.model import BackendModel
from cfdist.comparison import run
from cfdist.comparison.device import ComparingDevice
from cfdist.comparison.run import run_comparison
from cfdist.devices.base import DeviceSettings
from cfdist.distributed import pool


@pytest.mark.parametrize("given_up", [{}, {"e/b": "gone"}])
def test_chunks_are_added_up(spec, monkeypatch, given_up):
    chunk = SimpleNamespace(reference=[SimpleNamespace(id="e/a")])
    pools, added = [], []

    class Pool:
        def __init__(self, plan, make_device, batch, group):
            device = make_device(DeviceSettings(threads=1))
            assert isinstance(device, ComparingDevice)
            self.batch, self.group, self.events = batch, group, ["event"]
            pools.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def run_rounds(the_pool, items, make_work, on_ready, take, give_up):
        assert take("device", chunk) == ["e/a"]
        give_up(given_up)

    monkeypatch.setattr(pool, "DevicePool", Pool)
    monkeypatch.setattr(run, "run_rounds", run_rounds)
    model = BackendModel("openvino", spec(batch=3))
    there = SimpleNamespace(plan=SimpleNamespace(readers=1), models=(model, model))
    tally = SimpleNamespace(add=added.append, failures={})
    progress = SimpleNamespace(monitor="monitor")
    manifest = SimpleNamespace(items=())
    assert run_comparison(there, manifest, None, tally, progress) == ["event"]
    assert (added, tally.failures, pools[0].batch) == ([chunk], given_up, 3)
    assert pools[0].monitor == "monitor"

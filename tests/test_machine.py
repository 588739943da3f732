"""Cores within container limits."""

from __future__ import annotations

import pytest

from cfdist.machine import available_cores, available_memory


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_quota(tmp_path, files, expected):
    unlimited = available_cores(tmp_path / "none")
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert available_cores(tmp_path) == (expected or unlimited)
    assert unlimited >= 1


def test_memory():
    assert available_memory() > 0

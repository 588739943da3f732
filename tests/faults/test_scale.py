"""Many devices on several nodes of one machine, in small: nothing is lost, and nothing grows."""

from __future__ import annotations

import pytest

from tests.faults import scale

pytestmark = pytest.mark.slow


def test_what_processes_hold_does_not_grow_with_the_pictures(capsys):
    outcome = scale.run(pictures=300, devices=4, nodes=2, every=0.5, latency_ms=100)
    assert outcome.results["pictures"] == {"total": 69, "done": 69, "failed": 0}
    assert outcome.results["events"] == []
    assert len(outcome.results["devices"]) == 4
    kinds = {"driver", "reducer", "device", "raylet", "gcs_server"}
    middle = outcome.samples[len(outcome.samples) // 2]
    assert kinds <= middle.memory.keys()
    assert len(middle.memory["device"]) == 4
    assert len(middle.memory["raylet"]) == 2
    scale.show(outcome)
    assert outcome.growths == [], capsys.readouterr().out


def test_what_grows_is_named():
    samples = []
    for number in range(10):
        one = scale.Sample(number, 100 * number, number, number / 9)
        one.memory |= {"device": [1], "driver": [200 << 20], "reducer": [(100 + 10 * number) << 20]}
        one.files |= {"device": [1], "driver": [50 + 4 * number], "reducer": [40, 45]}
        samples.append(one)
    found = scale.Outcome(samples, {}, 1.0).growths
    assert [text.partition(":")[0] for text in found] == ["files of driver", "memory of reducer"]

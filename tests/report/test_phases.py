"""Phases add up to the time since the start."""

from __future__ import annotations

import time

import pytest

from cfdist.report.phases import Phases


def test_phases_follow_each_other_without_a_gap():
    started = time.time() - 5
    phases = Phases(started)
    phases.end("imports")
    time.sleep(0.01)
    phases.end("checks")
    phases.end("imports")  # once more: it adds up

    assert list(phases.seconds) == ["imports", "checks"]
    assert phases.seconds["imports"] >= 5
    assert phases.seconds["checks"] >= 0.01
    assert sum(phases.seconds.values()) == pytest.approx(time.time() - started, abs=0.5)

"""What a device's process reports."""

from __future__ import annotations

import socket
import time

import pytest

from cfdist.devices.activity import ActivityRecord
from cfdist.devices.base import DeviceReport
from cfdist.distributed.device_actor import Answer, by_our_clock


@pytest.mark.parametrize("ahead", [-7.0, 0.0, 3600.0])
def test_what_another_machine_did_is_told_by_this_one_s_clock(ahead):
    now = time.time()
    began = ActivityRecord(started=now - 5 + ahead, inferring=[1.0])
    there = Answer(DeviceReport(host="elsewhere", activity=began), at=now + ahead)
    assert by_our_clock(there).activity.started == pytest.approx(now - 5, abs=1)
    here = Answer(DeviceReport(host=socket.gethostname(), activity=began), at=now + ahead)
    assert by_our_clock(here).activity is began

"""The cores and accelerators of a real Ray, shared between devices."""

from __future__ import annotations

import pytest

from cfdist.distributed import plan as planning
from cfdist.distributed.plan import plan_devices
from cfdist.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_session")


def test_more_accelerators_than_there_are_is_the_user_s_error():
    with pytest.raises(UserError, match="devices=2: Ray sees 0 NPU"):
        plan_devices("npu", 2)
    with pytest.raises(UserError, match="devices=auto: Ray sees 0 GPU"):
        plan_devices("gpu", "auto")


def test_cores_are_shared_between_cpu_devices():
    import ray

    cores = int(ray.cluster_resources()["CPU"])
    one = plan_devices("cpu", 1, streams="auto")
    assert (one.count, one.threads, one.streams, one.readers) == (1, cores, cores, cores)
    assert one.max_in_flight == cores + 2
    many = plan_devices("cpu", 2 * cores, readers=3)
    assert (many.threads, many.streams, many.readers, many.cpus) == (1, 1, 3, 0.5)
    assert plan_devices("cpu", [0, 1, 2]).count == 3
    crowded = plan_devices("cpu", 1, streams="auto", stream_bytes=10**12)
    assert crowded.streams == 1


def test_devices_leave_the_cores_to_a_stage_that_letterboxes():
    plan = plan_devices("cpu", 1, shares_cpus=True)
    assert plan.actor_options["num_cpus"] == 0


@pytest.mark.parametrize(("free", "expected"), [(1000, 5), (100, 1), (10, 1), (10**6, 8)])
def test_streams_take_half_of_the_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(planning, "available_memory", lambda: free)
    assert planning.streams_in_memory(threads=8, count=2, stream_bytes=50) == expected

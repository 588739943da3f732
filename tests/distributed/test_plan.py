"""The cores and accelerators of a real Ray, shared between devices."""

from __future__ import annotations

import pytest

from cfdist.backends.base import Capabilities
from cfdist.distributed import plan as planning
from cfdist.distributed.plan import plan_devices, refuse_crowd
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


def planned(devices, cores, kind="cpu", **options) -> tuple:
    resources = {"CPU": cores, "GPU": 8, "NPU": 8}
    return plan_devices(kind, devices, resources=resources, **options), devices, cores


REAL, SIMULATED = Capabilities(streams_need_threads=True), Capabilities(is_simulated=True)


@pytest.mark.parametrize(
    ("plan", "of", "message"),
    [
        (planned(64, 2), REAL, "devices=64: these devices share 2 CPU cores; ask for at most 8"),
        (planned(64, 2), SIMULATED, "devices=64: .* ask for at most 32"),
        (planned(5, 1), REAL, "devices=5: these devices share 1 CPU core; ask for at most 4"),
        (planned(1, 2, streams=1000), REAL, "backend.streams=1000: a device here has 2 threads"),
        (planned(2, 2, streams=2), REAL, "backend.streams=2: .* 1 thread, .* ask for at most 1,"),
        (planned(1, 2, readers=1024), REAL, "pipeline.readers=1024: 1024 reader threads on 2"),
        (planned(4, 2, "npu", readers=64), REAL, "=64: 256 reader threads .* ask for at most 32"),
    ],
)
def test_more_than_the_cores_can_serve_is_refused(plan, of, message):
    with pytest.raises(UserError, match=message):
        refuse_crowd(*plan, of)


@pytest.mark.parametrize(
    ("plan", "of"),
    [
        (planned(8, 2, readers=16), REAL),
        (planned(32, 2, readers=1), SIMULATED),
        (planned(2, 4, streams=2), REAL),
        (planned(1, 2, streams="auto"), REAL),
        (planned(8, 1, "npu", readers=8), Capabilities()),
        (planned(1, 2, streams=9), Capabilities()),
    ],
)
def test_what_the_cores_can_serve_is_not(plan, of):
    assert refuse_crowd(*plan, of) is None


def test_devices_leave_the_cores_to_a_stage_that_letterboxes():
    plan = plan_devices("cpu", 1, shares_cpus=True)
    assert plan.actor_options["num_cpus"] == 0


@pytest.mark.parametrize(("free", "expected"), [(1000, 5), (100, 1), (10, 1), (10**6, 8)])
def test_streams_take_half_of_the_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(planning, "available_memory", lambda: free)
    assert planning.streams_in_memory(threads=8, count=2, stream_bytes=50) == expected

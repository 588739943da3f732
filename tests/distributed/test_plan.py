"""The cores, memory and accelerators of each node, shared between its devices."""

from __future__ import annotations

import pytest

from cfdist.backends.base import Capabilities
from cfdist.distributed.nodes import Node
from cfdist.distributed.plan import CORES_PER_AUTO_DEVICE, plan_devices, refuse_crowd
from cfdist.errors import UserError


def nodes_of(*cores: float, accelerators: int = 8) -> list[Node]:
    return [Node(f"h{i}", one, accelerators) for i, one in enumerate(cores)]


def test_more_accelerators_than_there_are_is_the_user_s_error(monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4,5")
    there = [Node("east", 8, 2), Node("middle", 8, 0), Node("west", 4, 1)]
    with pytest.raises(UserError) as refused:
        plan_devices("npu", 4, nodes=there)
    assert str(refused.value) == (
        "devices=4: Ray sees 3 NPU on this cluster: east 2 NPU and 8 CPU, west 1 NPU and 4 CPU "
        "(ASCEND_RT_VISIBLE_DEVICES=4,5 here); ask for at most that many, or choose a CPU backend "
        "(backend=openvino)"
    )
    with pytest.raises(UserError, match="devices=auto: Ray sees 0 GPU on this cluster; ask"):
        plan_devices("gpu", "auto", nodes=nodes_of(8, accelerators=0))


@pytest.mark.usefixtures("ray_session")
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


def test_auto_on_one_node_is_a_device_for_each_eight_cores():
    for cores in range(1, 200):
        plan = plan_devices("cpu", "auto", nodes=nodes_of(cores))
        assert plan.count == max(1, cores // CORES_PER_AUTO_DEVICE), cores
        assert plan.threads == plan.cpus == cores // plan.count, cores


@pytest.mark.parametrize(
    ("cores", "devices", "expected"),
    [
        # cores of the nodes; devices asked for -> how many, CPUs of each
        ((1, 1), 1, (1, 1)),
        ((1, 1), "auto", (2, 1)),
        ((3, 3), 1, (1, 3)),
        ((3, 3), "auto", (2, 3)),
        ((3, 3), 4, (4, 1)),
        ((3, 3), 9, (9, 0.6)),
        ((0, 4), 2, (2, 2)),
        ((1, 64), "auto", (8, 8)),
        ((4, 4, 8), "auto", (4, 4)),
        ((6, 6, 6, 6, 8), "auto", (5, 6)),
        ((0, 0.5), "auto", (1, 0.5)),
    ],
)
def test_a_device_lies_on_one_node(cores, devices, expected):
    plan = plan_devices("cpu", devices, nodes=nodes_of(*cores))
    assert (plan.count, plan.cpus) == expected
    assert plan.threads == max(1, int(plan.cpus))
    assert sum(plan.room(node) for node in nodes_of(*cores)) >= plan.count


def test_accelerators_share_the_cores_of_their_own_node():
    nodes = [Node("east", 16, 8), Node("west", 64, 2)]
    plan = plan_devices("npu", "auto", nodes=nodes)
    assert (plan.count, plan.threads, plan.cpus) == (10, 2, 2)
    assert plan_devices("npu", 2, nodes=nodes).threads == 32
    bare = plan_devices("npu", 2, nodes=[Node("east", 0, 2)])
    assert (bare.threads, bare.cpus, bare.room(Node("east", 0, 2))) == (1, 0, 2)


@pytest.mark.parametrize(
    ("devices", "part", "expected"),
    [(4, 0.25, 4), ("auto", 0.25, 8), ([0, 1], 0.5, 4), ("auto", 0.3, 6), (2, 1.0, 2)],
)
def test_devices_share_accelerators(devices, part, expected):
    plan = plan_devices("gpu", devices, nodes=nodes_of(16, accelerators=2), part=part)
    assert (plan.count, plan.actor_options["num_gpus"]) == (expected, part)
    assert plan.threads == 16 // expected


def test_more_devices_than_share_the_accelerators_are_refused():
    message = (
        r"devices=9: Ray sees 2 GPU .* ask for at most 8 with backend.gpus_per_device=0.25, or"
    )
    with pytest.raises(UserError, match=message):
        plan_devices("gpu", 9, nodes=nodes_of(16, accelerators=2), part=0.25)


def test_a_cluster_without_a_cpu_is_refused():
    with pytest.raises(UserError, match=r"devices=2: no node .* a CPU \(h0 0 CPU, h1 0 CPU\); st"):
        plan_devices("cpu", 2, nodes=nodes_of(0, 0))


def planned(devices, cores, kind="cpu", **options) -> tuple:
    return plan_devices(kind, devices, nodes=nodes_of(cores), **options), devices, cores


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


@pytest.mark.parametrize(("free", "expected"), [(1000, 5), (100, 1), (10, 1), (10**6, 8)])
def test_streams_take_half_of_the_memory_of_the_node_that_has_least(free, expected):
    nodes = [Node("east", 16, memory=free), Node("west", 16, memory=10**9), Node("head", 0)]
    plan = plan_devices("cpu", 4, streams="auto", stream_bytes=50, nodes=nodes)
    assert (plan.threads, plan.streams) == (8, expected)

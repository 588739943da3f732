"""What the nodes of a cluster have, and how devices find room on them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.distributed.nodes import (
    UNIT,
    Node,
    cluster_nodes,
    free_nodes,
    largest_share,
    named,
    other_jobs,
)

NODES = st.lists(
    st.builds(
        Node,
        host=st.just("h"),
        cpus=st.sampled_from([0, 0.5, 1, 2, 3, 7, 64]),
        accelerators=st.sampled_from([0, 1, 0.25, 1.5, 8]),
    ),
    max_size=4,
)


@given(NODES, st.sampled_from(["cpu", "npu"]), st.integers(1, 40), st.sampled_from([1, 0.3, 0.1]))
def test_the_share_is_the_largest_for_which_there_is_room(nodes, kind, count, part):
    def room(share: int) -> int:
        return sum(node.room(kind, share, part) for node in nodes)

    share = largest_share(nodes, kind, count, part)
    if share:
        assert room(share) >= count > room(share + 1)
    else:
        assert room(1) < count


def test_a_part_of_an_accelerator_lies_on_one():
    assert [Node("h", 9, 2).room("gpu", 1, part) for part in (1, 0.6, 0.5, 0.3, 0.1)] == [
        2, 2, 4, 6, 20,
    ]  # fmt: skip
    assert Node("h", 9, 0.75).room("gpu", 1, 0.25) == 3  # another run has the rest
    assert Node("h", 9, 0.75).room("gpu", 1) == 0


@pytest.mark.usefixtures("ray_session")
def test_ray_says_what_its_nodes_have():
    import ray

    (node,) = cluster_nodes("npu")
    assert node.cpus == ray.cluster_resources()["CPU"]
    assert (node.accelerators, node.id) == (0, ray.get_runtime_context().get_node_id())
    assert node.memory > 0
    assert cluster_nodes("cpu")[0].room("cpu", UNIT) == node.cpus


def test_nodes_are_named_with_what_they_have():
    nodes = [Node("east", 2.0, 1), Node("west", 0.5, 0)]
    assert named(nodes, "cpu") == "east 2 CPU, west 0.5 CPU"
    assert named(nodes, "gpu") == "east 1 GPU and 2 CPU, west 0 GPU and 0.5 CPU"
    assert named([], "gpu") == "no node"


@pytest.mark.usefixtures("ray_session")
def test_what_another_job_holds_is_not_free():
    import ray
    from ray._private import ray_constants

    assert other_jobs() == 0
    (before,) = free_nodes("cpu")
    script = (
        "import ray, signal, sys; signal.alarm(90)\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "actor = ray.remote(type('Holder', (), {'f': lambda self: 0})).options(num_cpus=1)\n"
        "ray.get(actor.remote().f.remote()); print('there', flush=True); input()"
    )
    command = [sys.executable, "-c", script, ray.get_runtime_context().gcs_address]
    # The session listens on the loopback interface alone.
    environment = {**os.environ, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as job:
        assert job.stdout.readline() == "there\n"
        assert other_jobs() == 1
        (free,) = free_nodes("cpu")
        assert free.cpus == before.cpus - 1
        assert (free.host, free.id) == (before.host, before.id)
        job.communicate("\n")

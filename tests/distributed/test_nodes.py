"""What the nodes of a cluster have, and how devices find room on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.distributed.nodes import UNIT, Node, cluster_nodes, largest_share, named

NODES = st.lists(
    st.builds(
        Node,
        host=st.just("h"),
        cpus=st.sampled_from([0, 0.5, 1, 2, 3, 7, 64]),
        accelerators=st.integers(0, 8),
    ),
    max_size=4,
)


@given(NODES, st.sampled_from(["cpu", "npu"]), st.integers(1, 40))
def test_the_share_is_the_largest_for_which_there_is_room(nodes, kind, count):
    def room(share: int) -> int:
        return sum(node.room(kind, share) for node in nodes)

    share = largest_share(nodes, kind, count)
    if share:
        assert room(share) >= count > room(share + 1)
    else:
        assert room(1) < count


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

"""The nodes of a cluster: what each has, and how many devices of a run find room there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE

# Ray counts CPUs in ten-thousandths.
UNIT = 10_000


@dataclass(frozen=True)
class Node:
    """A node of the cluster to which Ray is connected, or this machine before Ray is there.

    Attributes:
        cpus: Ray's CPUs.
        accelerators: Those of the run's kind; a part of one may be free.
        memory: What the devices may take there, bytes.
        id: Ray's.
    """

    host: str
    cpus: float
    accelerators: float = 0
    memory: int = 0
    id: str = ""

    def room(self, kind: str, share: int, part: float = 1.0) -> int:
        """How many devices fit, each with ten-thousandths of a CPU and a part of an accelerator."""
        room = int(self.cpus * UNIT) // share if share else 0
        if ACCELERATOR_RESOURCE[kind] is None:
            return room
        whole, rest = divmod(self.accelerators, 1)
        places = int(whole) * devices_on_one(part) + int(rest / part + 1e-6)
        return min(room, places) if share else places


def devices_on_one(part: float) -> int:
    """How many devices share an accelerator of which each has a part, 0 to 1."""
    return int(1 / part + 1e-6)


def cluster_nodes(kind: str) -> list[Node]:
    """The living nodes of the cluster; `kind`, "cpu", "gpu" or "npu", is that of the devices."""
    import ray

    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            has = node["Resources"]
            accelerators = has.get(ACCELERATOR_RESOURCE[kind], 0)
            host, id = node["NodeManagerHostname"], node["NodeID"]
            found.append(
                Node(host, has.get("CPU", 0.0), accelerators, int(has.get("memory", 0)), id)
            )
    return found


def free_nodes(kind: str) -> list[Node]:
    """`cluster_nodes` with what nobody holds now of their CPUs and accelerators."""
    from ray._private import state

    free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        replace(
            node,
            cpus=free.get(node.id, {}).get("CPU", 0.0),
            accelerators=free.get(node.id, {}).get(ACCELERATOR_RESOURCE[kind], 0),
        )
        for node in cluster_nodes(kind)
    ]


def other_jobs() -> int:
    """How many other jobs the cluster has that have not ended, without the dashboard's."""
    import ray
    from ray._private import state

    own = ray.get_runtime_context().get_job_id()
    return sum(
        not job["IsDead"] and job["JobID"] != own and "dashboard" not in job["Entrypoint"]
        for job in state.jobs()  # type: ignore[no-untyped-call]
    )


def all_but(ids: Sequence[str]) -> dict[str, str]:
    """Ray's label selector of the nodes that are none of these; empty for all nodes."""
    return {"ray.io/node-id": f"!in({','.join(ids)})"} if ids else {}


def largest_share(nodes: Sequence[Node], kind: str, count: int, part: float = 1.0) -> int:
    """The most of a CPU that each of `count` devices can have, ten-thousandths.

    Each has a part of an accelerator.
    A device lies on one node: two nodes of 3 CPUs have no room for a device of 4. 0 if there is no
    room for so many devices, however little each has.
    """
    sizes = {int(node.cpus * UNIT) for node in nodes}
    shares = {size // number for size in sizes for number in range(1, count + 1)} - {0}
    for share in sorted(shares, reverse=True):
        if sum(node.room(kind, share, part) for node in nodes) >= count:
            return share
    return 0


def named(nodes: Sequence[Node], kind: str) -> str:
    """What each node has, for a message: "a 4 CPU, b 8 CPU"."""
    resource = ACCELERATOR_RESOURCE[kind]
    counts = [f"{node.accelerators:g} {resource}" if resource else "" for node in nodes]
    cpus = [f"{node.cpus:g} CPU" for node in nodes]
    parts = [
        f"{node.host} {' and '.join(filter(None, both))}"
        for node, *both in zip(nodes, counts, cpus, strict=True)
    ]
    return ", ".join(parts) or "no node"

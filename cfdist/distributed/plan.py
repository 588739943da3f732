"""How the devices of a run are laid out on the cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cfdist.backends.base import Capabilities, DeviceSettings
from cfdist.devices.base import AHEAD
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, VISIBLE_DEVICES
from cfdist.distributed.nodes import (
    UNIT,
    Node,
    all_but,
    cluster_nodes,
    devices_on_one,
    largest_share,
    named,
)
from cfdist.errors import UserError, counted

CORES_PER_AUTO_DEVICE = 8

# Larger devices may leave this part of the cluster's cores without work: they share more.
_USED_CORES = 0.9

# More of these than this for each core only wait for each other; each device is a process, and each
# of those takes memory. A simulated device does not compute.
DEVICES_A_CORE = 4
SIMULATED_A_CORE = 16
READERS_A_CORE = 64

Auto = Literal["auto"]
Devices = int | list[int] | Auto


@dataclass(frozen=True)
class DevicePlan:
    """The devices of a run.

    Attributes:
        kind: "cpu", "gpu" or "npu".
        threads: CPU threads of each device for inference.
        streams: Inferences that each device takes at once.
        readers: Reader threads of each device.
        cpus: Ray's CPUs that each actor takes.
        timeout: The limit of each device's work, seconds; `None`: from the device's history.
        first_seconds: What loading, or a device's first work, may take.
        fails_fast: The first picture that fails ends the run.
        share: Ten-thousandths of a CPU that each device has, whether or not its actor takes them.
        without: Ray's ids of the nodes that have none of the devices.
        wait_s: How long a device waits for a node with room for it, seconds.
        grows: Nodes that join during the run get devices, too.
        part: The part of an accelerator that each device has; on CPUs it says nothing.
    """

    kind: str
    count: int
    threads: int
    streams: int
    readers: int
    cpus: float
    timeout: float | None = None
    first_seconds: float = 600.0
    fails_fast: bool = False
    share: int = 0
    without: tuple[str, ...] = ()
    wait_s: float = 30.0
    grows: bool = False
    part: float = 1.0

    def room(self, node: Node) -> int:
        """How many of the devices may lie on a node."""
        return min(self.count, node.room(self.kind, self.share, self.part))

    @property
    def max_in_flight(self) -> int:
        """Chunks that a device holds at once, at most."""
        return self.streams + AHEAD

    def settings(self, number: int) -> DeviceSettings:
        """What the device with a number gives its backend."""
        return DeviceSettings(self.threads, self.streams, number=number)

    @property
    def actor_options(self) -> dict[str, Any]:
        """Ray's options of each device actor."""
        resource = ACCELERATOR_RESOURCE[self.kind]
        return {
            **({"label_selector": all_but(self.without)} if self.without else {}),
            "num_cpus": self.cpus,
            "num_gpus": self.part if resource == "GPU" else 0,
            "resources": {"NPU": 1} if resource == "NPU" else None,
            "max_concurrency": self.max_in_flight,
            "enable_task_events": False,  # the head would keep 100,000 of them
        }


def plan_devices(
    kind: str,
    devices: Devices,
    readers: int | Auto = "auto",
    streams: int | Auto = 1,
    stream_bytes: int = 1,
    nodes: Sequence[Node] | None = None,
    part: float = 1.0,
) -> DevicePlan:
    """Share the cores of each node between the devices that lie on it.

    Args:
        kind: "cpu", "gpu" or "npu".
        devices: A number, a list of accelerators, or "auto": every accelerator, or about one CPU
            device for each 8 cores. An accelerator of a list, or of all, gets as many devices as
            share one.
        readers: Reader threads of each device, or "auto": its share of the cores.
        streams: Inferences that a device takes at once, or "auto": a CPU device takes as many as
            it has threads, as far as half of its node's memory goes, any other device one.
        stream_bytes: What one more stream takes, bytes, see `cfdist.devices.memory`.
        nodes: Those of the cluster; `None`: Ray, which is connected, says it.
        part: The part of an accelerator that each device has.

    Raises:
        UserError: the cluster has fewer accelerators than asked for, or no CPU.
    """
    if nodes is None:
        nodes = cluster_nodes(kind)
    if devices == "auto":
        count = _auto_count(kind, nodes, part)
    else:
        count = len(devices) * devices_on_one(part) if isinstance(devices, list) else devices
    _refuse_too_many(kind, devices, count, nodes, part)
    share = largest_share(nodes, kind, count, part)
    if not share and kind == "cpu":
        raise UserError(
            f"devices={devices}: no node of the cluster has a CPU ({named(nodes, kind)}); start "
            "one with CPUs: ray start --address=... --num-cpus=N"
        )
    threads = max(1, share // UNIT)
    if streams == "auto":
        streams = streams_in_memory(threads, kind, share, stream_bytes, nodes)
    if readers == "auto":
        readers = threads
    cpus = min(share / UNIT, threads)
    return DevicePlan(kind, count, threads, streams, readers, cpus, share=share, part=part)


def _auto_count(kind: str, nodes: Sequence[Node], part: float) -> int:
    """Every accelerator; on CPUs the fewest devices that leave hardly a core of any node idle."""
    if ACCELERATOR_RESOURCE[kind]:
        return sum(node.room(kind, 0, part) for node in nodes)
    cores = [int(node.cpus) for node in nodes if node.cpus >= 1]
    if not cores:
        return 1
    # The threads that a device has if its node is alone.
    sizes = sorted({one // max(1, one // CORES_PER_AUTO_DEVICE) for one in cores}, reverse=True)
    used = {size: size * sum(one // size for one in cores) for size in sizes}
    enough = _USED_CORES * sum(cores)
    size = next((size for size in sizes if used[size] >= enough), max(sizes, key=used.__getitem__))
    return used[size] // size


def _refuse_too_many(
    kind: str, devices: Devices, count: int, nodes: Sequence[Node], part: float
) -> None:
    """Refuse more devices than there are accelerators; a `UserError` says how many, and where."""
    resource = ACCELERATOR_RESOURCE[kind]
    there = sum(node.accelerators for node in nodes)
    room = sum(node.room(kind, 0, part) for node in nodes)
    if resource is None or 0 < count <= room:
        return
    visible = os.environ.get(VISIBLE_DEVICES[kind])
    allotment = "" if visible is None else f" ({VISIBLE_DEVICES[kind]}={visible} here)"
    hosts = f": {named([node for node in nodes if node.accelerators], kind)}" if there else ""
    most = "that many" if part == 1 else f"{room} with backend.gpus_per_device={part:g}"
    raise UserError(
        f"devices={devices}: Ray sees {there:g} {resource} on this cluster{hosts}{allotment}; "
        f"ask for at most {most}, or choose a CPU backend (backend=openvino)"
    )


def refuse_crowd(plan: DevicePlan, devices: Devices, cores: int, of: Capabilities) -> None:
    """Refuse more devices, streams or reader threads than the cores can serve.

    Args:
        plan: The devices.
        devices: As in the configuration.
        cores: That the devices share.
        of: Their backend's.

    Raises:
        UserError: it names the key and the most that it may be.
    """
    if plan.kind == "cpu" and isinstance(devices, int):
        refuse_many(devices, cores, of)
    if of.streams_need_threads and plan.streams > plan.threads:
        raise UserError(
            f"backend.streams={plan.streams}: a device here has "
            f"{counted(plan.threads, 'thread')}, and each stream needs one; ask for at most "
            f"{plan.threads}, for fewer devices, or for backend.streams=auto"
        )
    refuse_readers("pipeline.readers", plan.readers, cores, plan.count)


def refuse_many(devices: int, cores: int, of: Capabilities) -> None:
    """Refuse more CPU devices than the cores can serve.

    Raises:
        UserError: it says how many there may be.
    """
    most = cores * (SIMULATED_A_CORE if of.is_simulated else DEVICES_A_CORE)
    if devices > most:
        raise UserError(
            f"devices={devices}: these devices share {counted(cores, 'CPU core')}; ask for at "
            f"most {most}"
        )


def refuse_readers(key: str, readers: int, cores: int, devices: int = 1) -> None:
    """Refuse more reader threads than some for each core.

    Raises:
        UserError: it names `key`, which says how many threads each device has.
    """
    most = max(1, READERS_A_CORE * cores // devices)
    if readers > most:
        raise UserError(
            f"{key}={readers}: {devices * readers} reader threads on "
            f"{counted(cores, 'CPU core')}; ask for at most {most}"
        )


def streams_in_memory(
    threads: int, kind: str, share: int, stream_bytes: int, nodes: Sequence[Node]
) -> int:
    """One stream a thread, as far as half of each node's memory goes; at least one.

    Devices of accelerators take one.
    """
    if kind != "cpu":
        return 1
    each = [node.memory // 2 // node.room(kind, share) for node in nodes if node.room(kind, share)]
    return max(1, min(threads, min(each) // stream_bytes))

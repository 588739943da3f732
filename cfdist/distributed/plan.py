"""How the devices of a run are laid out on the cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cfdist.backends.base import Capabilities, DeviceSettings
from cfdist.devices.base import AHEAD
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, VISIBLE_DEVICES
from cfdist.errors import UserError
from cfdist.machine import available_memory

CORES_PER_AUTO_DEVICE = 8

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
    """

    kind: str
    count: int
    threads: int
    streams: int
    readers: int
    cpus: float

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
            "num_cpus": self.cpus,
            "num_gpus": 1 if resource == "GPU" else 0,
            "resources": {"NPU": 1} if resource == "NPU" else None,
            "max_concurrency": self.max_in_flight,
        }


def plan_devices(
    kind: str,
    devices: Devices,
    readers: int | Auto = "auto",
    streams: int | Auto = 1,
    stream_bytes: int = 1,
    shares_cpus: bool = False,
    resources: Mapping[str, float] | None = None,
) -> DevicePlan:
    """Share the cluster's cores between the devices.

    Args:
        kind: "cpu", "gpu" or "npu".
        devices: A number, a list with one entry a device, or "auto": every accelerator, or one CPU
            device for each 8 cores.
        readers: Reader threads of each device, or "auto": its share of the cores.
        streams: Inferences that a device takes at once, or "auto": a CPU device takes as many as
            it has threads, as far as half of the free memory goes, any other device one.
        stream_bytes: What one more stream takes, bytes, see `cfdist.devices.memory`.
        shares_cpus: Whether other tasks need the CPUs while the devices run.
        resources: What the cluster has, by Ray's names; `None`: Ray, which is connected, says it.

    Raises:
        UserError: the cluster has fewer accelerators than asked for.
    """
    if resources is None:
        resources = cluster_resources()
    cores = cores_of(resources)
    resource = ACCELERATOR_RESOURCE[kind]
    accelerators = int(resources.get(resource, 0)) if resource else 0
    if devices == "auto":
        count = accelerators if resource else max(1, cores // CORES_PER_AUTO_DEVICE)
    else:
        count = len(devices) if isinstance(devices, list) else devices
    if (resource and count > accelerators) or count == 0:
        visible = os.environ.get(VISIBLE_DEVICES.get(kind, ""))
        allotment = "" if visible is None else f" ({VISIBLE_DEVICES[kind]}={visible} here)"
        raise UserError(
            f"devices={devices}: Ray sees {accelerators} {resource} on this cluster{allotment}; "
            "ask for at most that many, or choose a CPU backend (backend=openvino)"
        )
    threads = max(1, cores // count)
    if streams == "auto":
        streams = streams_in_memory(threads, count, stream_bytes) if kind == "cpu" else 1
    if readers == "auto":
        readers = threads
    # Ray counts in ten-thousandths.
    cpus = int(min(cores / count, threads) * 10_000) / 10_000
    return DevicePlan(kind, count, threads, streams, readers, 0 if shares_cpus else cpus)


def cluster_resources() -> dict[str, float]:
    """What the cluster to which Ray is connected has."""
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def cores_of(resources: Mapping[str, float]) -> int:
    """The CPUs that a cluster has, at least one."""
    return max(1, int(resources.get("CPU", 1)))


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
    most = cores * (SIMULATED_A_CORE if of.is_simulated else DEVICES_A_CORE)
    if plan.kind == "cpu" and plan.count > most:
        raise UserError(
            f"devices={devices}: these devices share {_counted(cores, 'CPU core')}; ask for at "
            f"most {most}"
        )
    if of.streams_need_threads and plan.streams > plan.threads:
        raise UserError(
            f"backend.streams={plan.streams}: a device here has "
            f"{_counted(plan.threads, 'thread')}, and each stream needs one; ask for at most "
            f"{plan.threads}, for fewer devices, or for backend.streams=auto"
        )
    refuse_readers("pipeline.readers", plan.readers, cores, plan.count)


def refuse_readers(key: str, readers: int, cores: int, devices: int = 1) -> None:
    """Refuse more reader threads than some for each core.

    Raises:
        UserError: it names `key`, which says how many threads each device has.
    """
    most = max(1, READERS_A_CORE * cores // devices)
    if readers > most:
        raise UserError(
            f"{key}={readers}: {devices * readers} reader threads on "
            f"{_counted(cores, 'CPU core')}; ask for at most {most}"
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def streams_in_memory(threads: int, count: int, stream_bytes: int) -> int:
    """One stream a thread, as far as half of the free memory goes; at least one."""
    return max(1, min(threads, available_memory() // 2 // count // stream_bytes))

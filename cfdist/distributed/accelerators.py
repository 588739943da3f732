"""Which GPUs and NPUs a run may use, which of them it takes, and which one an actor has."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from cfdist.ascend.npu_smi import list_npus, read_npus, usable_numbers
from cfdist.errors import UserError
from cfdist.machine import in_environment

# Ray's resource that an actor of each kind of device takes, besides CPUs.
ACCELERATOR_RESOURCE = {"cpu": None, "gpu": "GPU", "npu": "NPU"}

# Names the devices that a process sees; inside, they are numbered from 0.
VISIBLE_DEVICES = {"gpu": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}

# What the drivers and Slurm write for "no device"; it ends the list.
_NO_DEVICE = ("", "-1", "NoDevFiles")


class Place(NamedTuple):
    """Where a device actor runs.

    Attributes:
        host: The machine's name.
        address: The machine's address in the cluster.
        chip: The accelerator's number on its machine, or its UUID; `None` on a CPU.
        node: Ray's id of the node; a machine may be several.
    """

    host: str
    address: str
    chip: str | None
    node: str = ""


def allotted(kind: str) -> list[str] | None:
    """The accelerators that this process was allotted, by a scheduler or a person.

    Args:
        kind: "gpu" or "npu".

    Returns:
        Their numbers on the machine, UUIDs or MIG names; `None` if all may be used.

    Raises:
        UserError: one is named twice, so that two devices would share it, or no NPU has the name.
    """
    variable = VISIBLE_DEVICES[kind]
    value = os.environ.get(variable)
    if value is None:
        return None
    entries = [entry.strip() for entry in value.split(",")]
    names = list(takewhile(lambda entry: entry not in _NO_DEVICE, entries))
    if len(set(names)) != len(names):
        raise UserError(f"{variable}={value}: names a device twice; name each device once")
    odd = [name for name in names if not re.fullmatch(r"[0-9]{1,4}", name)]
    if odd and kind == "npu":  # only GPUs have other names
        raise UserError(
            f"{variable}={value}: {odd[0]} is no NPU's number; write each, with commas between"
        )
    return names


def chosen(kind: str, devices: int | list[int] | str) -> list[str] | None:
    """The accelerators that a run's own cluster may use.

    Args:
        kind: "gpu" or "npu".
        devices: As in the configuration. A list counts from 0 within what is allotted; without one,
            NPUs that are broken are left out.

    Returns:
        As `allotted` gives them.

    Raises:
        UserError: `devices` names one that is not allotted or not there, or all NPUs are broken.
    """
    names = allotted(kind)
    if not isinstance(devices, list):
        return _unbroken(names) if kind == "npu" else names
    if names is None:
        # A list may name chips that are broken; they have their numbers, too.
        count = len(read_npus()) if kind == "npu" else count_accelerators(kind)
        if not count:  # nobody can say how many there are; Ray may find some
            return [str(device) for device in devices]
        names, whose = [str(number) for number in range(count)], "this machine has"
    else:
        variable = VISIBLE_DEVICES[kind]
        whose = f"{variable}={os.environ[variable]} allots"
    for device in devices:
        if device >= len(names):
            raise UserError(
                f"devices={devices}: there is no {ACCELERATOR_RESOURCE[kind]} {device}; {whose} "
                f"{len(names)}, counted from 0"
            )
    return [names[device] for device in devices]


def _unbroken(names: list[str] | None) -> list[str] | None:
    """The allotted NPUs without those that are broken; `None` if all of the machine may be used."""
    numbers = usable_numbers(read_npus(), None if names is None else [int(one) for one in names])
    if numbers == []:
        variable = VISIBLE_DEVICES["npu"]
        raise UserError(
            f"{variable}={os.environ.get(variable, '')}: npu-smi says that the health of these "
            "chips is Critical; name others, or choose a CPU backend (backend=openvino)"
        )
    return names if numbers is None else [str(number) for number in numbers]


def count_accelerators(kind: str) -> int:
    """How many accelerators of a kind this machine has; 0 if none or unknown."""
    if kind == "npu":
        return len(list_npus())
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    return int(manager.get_current_node_num_accelerators()) if manager else 0


@contextlib.contextmanager
def only_visible(kind: str, names: list[str] | None) -> Iterator[None]:
    """Limit the cluster that is started in the `with` block to some accelerators."""
    if names is None:
        yield
        return
    with in_environment(VISIBLE_DEVICES[kind], ",".join(names)):
        yield


def resources(kind: str, names: list[str] | None) -> dict[str, object]:
    """What `ray.init` has to be told of a machine's accelerators.

    Ray finds GPUs itself, but counts the MIG parts of one as one. It finds NPUs only if the
    toolkit's Python package or the device files are there.

    Args:
        kind: "cpu", "gpu" or "npu".
        names: Those that may be used; `None`: all.
    """
    if kind == "npu":
        count = len(list_npus()) if names is None else len(names)
        return {"resources": {"NPU": count} if count or names is not None else None}
    if kind == "gpu" and names and not all(name.isdigit() for name in names):
        return {"num_gpus": len(names)}
    return {}


def settle(kind: str) -> Place:
    """Make this actor's process see the accelerator alone that Ray gave it; its index is then 0.

    Ray does so itself unless it was told not to (RAY_EXPERIMENTAL_NOSET_...); then every actor
    would open the first accelerator. Nothing may have used an accelerator in this process before.

    Raises:
        UserError: Ray gave this actor none, or several.
    """
    import ray

    host = socket.gethostname()
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    node = ray.get_runtime_context().get_node_id()
    resource = ACCELERATOR_RESOURCE[kind]
    if resource is None:
        return Place(host, address, None, node)
    names = ray.get_runtime_context().get_accelerator_ids().get(resource, [])
    variable = VISIBLE_DEVICES[kind]
    if len(names) != 1:
        raise UserError(
            f"{host}: Ray gave a device {len(names)} {resource}s ({', '.join(names) or 'none'}), "
            f"not one; start the cluster's node with as many {resource}s as {variable} names there"
        )
    os.environ[variable] = names[0]
    return Place(host, address, names[0], node)

"""Before a run on a cluster: whether each node has what the run's devices need there."""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cfdist.backends.model import BackendModel
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, count_accelerators
from cfdist.distributed.failures import user_error
from cfdist.distributed.nodes import Node, cluster_nodes
from cfdist.errors import UserError
from cfdist.machine import available_memory, sources_digest
from cfdist.model import refuse_other_model
from cfdist.monitoring.terminal import say
from cfdist.storage import read
from cfdist.widerface.manifest import WorkItem

log = logging.getLogger(__name__)

# A node that has not answered by then is named, seconds; by the second limit it is left out.
NAMED_AFTER, LEFT_OUT_AFTER = 10.0, 60.0

# Pictures that each node reads, spread over the data set.
_SAMPLE = 5

_LEAST_DISK_BYTES = 64 << 20  # for Ray's logs


@dataclass(frozen=True)
class NodeAnswer:
    """What a node says of itself.

    Attributes:
        versions: Of Ray, Python and cfdist, the last with a digest of its source files.
        memory: Free, bytes.
        disk: Free in the temporary folder, bytes.
        faults: Why it can have none of the run's devices, a text each.
    """

    versions: tuple[str, str, str]
    memory: int
    disk: int
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeCheck:
    """A node of the cluster before the run.

    Attributes:
        answer: `None` if there is none.
        faults: Why it can have none of the run's devices; empty if it can.
    """

    node: Node
    answer: NodeAnswer | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What each node must have.

    Attributes:
        models: What each device runs.
        pictures: Some of those that the devices will read.
        kind: "cpu", "gpu" or "npu": what the run's devices are.
    """

    models: tuple[BackendModel, ...]
    pictures: tuple[WorkItem, ...]
    kind: str


def check_nodes(
    models: Sequence[BackendModel], pictures: Sequence[WorkItem], kind: str
) -> tuple[NodeCheck, ...]:
    """Ask every node of the cluster to which Ray is connected.

    Args:
        models: What each device runs.
        pictures: Those that the devices will read; some of them are tried.
        kind: "cpu", "gpu" or "npu": what the run's devices are.

    Raises:
        UserError: no node is left.
    """
    import ray

    sample = pictures[:: max(1, len(pictures) // _SAMPLE)]
    # A picture that cannot be read here either is no node's fault.
    wanted = Wanted(tuple(models), tuple(one for one in sample if not _refusal(one)), kind)
    asked = {
        on_node(node, inspect_node, wanted, node.accelerators): node for node in cluster_nodes(kind)
    }
    _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NAMED_AFTER)
    if silent:
        hosts = ", ".join(asked[ref].host for ref in silent)
        say(f"no answer yet of {hosts}; waiting for it ...")
        left = LEFT_OUT_AFTER - NAMED_AFTER
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=left)
    checks = tuple(_checked(node, None if ref in silent else ref) for ref, node in asked.items())
    for check in checks:
        if check.faults:
            log.warning("%s is left out: %s", check.node.host, "; ".join(check.faults))
    # A node without CPUs, or without the accelerators, could not have one anyhow.
    able = [check for check in checks if check.node.room(kind, 1)]
    if all(check.faults for check in able or checks):
        raise UserError(
            f"no node of the cluster can have a device of this run ({left_out(checks)})"
        )
    return checks


def left_out(checks: Sequence[NodeCheck]) -> str:
    """Which nodes are left out of a run, and why; empty if none is."""
    without = [check for check in checks if check.faults]
    reasons = "; ".join(f"{check.node.host}: {check.faults[0]}" for check in without[:3])
    return f"{reasons}; and {len(without) - 3} more" if len(without) > 3 else reasons


@contextlib.contextmanager
def naming_left_out(checks: Sequence[NodeCheck]) -> Iterator[None]:
    """Let a refusal of the `with` block say which nodes are left out, and why.

    Raises:
        UserError: in place of one.
    """
    try:
        yield
    except UserError as error:
        if not (reasons := left_out(checks)):
            raise
        raise UserError(f"{error} (left out: {reasons})") from None


def on_node(node: Node, function: Callable[..., Any], *arguments: object) -> Any:
    """The reference to what a function gives on a node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task: Any = ray.remote(function)
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": strategy}
    return task.options(**options).remote(*arguments)


def _checked(node: Node, ref: Any) -> NodeCheck:
    """What a node has answered; without a reference, it has not."""
    import ray

    if ref is None:
        return NodeCheck(node, None, (f"has not answered within {LEFT_OUT_AFTER:.0f} s",))
    try:
        answer: NodeAnswer = ray.get(ref)
    except ray.exceptions.RayError as error:  # such as a node without this project
        reason = str(user_error(error)).strip().splitlines()[-1:]
        return NodeCheck(node, None, (f"cannot run this command's tasks ({''.join(reason)})",))
    pairs = zip(("Ray", "Python", "cfdist"), answer.versions, versions(), strict=True)
    other = (f"has {what} {its}, this command {own}" for what, its, own in pairs if its != own)
    return NodeCheck(node, answer, (*other, *answer.faults))


def inspect_node(wanted: Wanted, declared: float) -> NodeAnswer:
    """What this node has of what is wanted; `declared`: the accelerators it has told Ray of."""
    faults = [text for item in wanted.pictures if (text := _refusal(item))][:1]
    for model in wanted.models:
        if not model.is_simulated and model.fetch is None:
            try:
                refuse_other_model(model.spec)
            except UserError as error:
                faults.append(str(error))
    there = count_accelerators(wanted.kind) if wanted.kind != "cpu" else 0
    if 0 < there < declared:  # nobody may be able to say how many there are
        resource = ACCELERATOR_RESOURCE[wanted.kind]
        faults.append(f"has {there} {resource}, and was started with {declared:g}")
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    if disk < _LEAST_DISK_BYTES:
        faults.append(f"has {disk / 1e6:.0f} MB free in {tempfile.gettempdir()}")
    return NodeAnswer(versions(), available_memory(), disk, tuple(faults))


def _refusal(item: WorkItem) -> str | None:
    """Why this host does not have a picture as the manifest has it."""
    try:
        size = len(read(item.path))
    except OSError as error:
        return f"cannot read {item.path} ({error.strerror or error})"
    if size == item.size:
        return None
    return f"has another {item.path} ({size} bytes; {item.size} where the command runs)"


def versions() -> tuple[str, str, str]:
    """Those of Ray, Python and cfdist, the last with a digest of its source files."""
    import ray

    import cfdist

    own = f"{cfdist.__version__} ({sources_digest()[:8]})"
    return ray.__version__, platform.python_version(), own

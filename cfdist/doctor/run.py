"""What a run of `job=evaluate` needs besides the host: model, runtimes, pictures, Ray, nodes."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cfdist import backends, execution, inputs
from cfdist.backends.model import BackendModel
from cfdist.backends.trial import reason_against
from cfdist.config import Config
from cfdist.config.installation import COMMAND
from cfdist.distributed.session import session
from cfdist.doctor.host import host_findings, locks_and_room
from cfdist.doctor.packages import remedy_of
from cfdist.doctor.table import Finding, can_run, looked_at
from cfdist.errors import UserError, counted
from cfdist.widerface.manifest import Manifest

# About what a picture leaves: journal, prediction file and its part of the Parquet file.
_BYTES_A_PICTURE, _LEAST_BYTES = 40_000, 64 << 20


def run_findings(config: Config, output: Path) -> list[Finding]:
    """What a run with this configuration finds here; Ray is started, and ended again."""
    config = config.model_copy(update={"job": "evaluate"})
    logging.getLogger().addHandler(logging.NullHandler())  # a run would have its log
    is_on_npus = config.backend.name == "om"
    found = host_findings(is_on_npus)
    models: list[BackendModel] = []
    found.append(looked_at("model", lambda: _model(config, output, models)))
    found += _runtimes(config, models)
    found += _gpus(models)
    manifests: list[Manifest] = []
    found += _data(config, manifests)
    pictures = len(manifests[0].items) if manifests else 0
    found += locks_and_room(output, _LEAST_BYTES + pictures * _BYTES_A_PICTURE)
    return found + _ray(config, models, manifests, can_run(found))


def _model(config: Config, output: Path, models: list[BackendModel]) -> str:
    with _quiet():
        model = execution.find_model(config, output)
    models.append(model)
    if model.is_simulated:
        return "none: backend=simulated"
    own = model.spec.size == "own"
    sides = "pictures' own size" if own else f"{model.spec.width}x{model.spec.height}"
    size = f"{sides}, batch {model.spec.batch}"
    return f"{model.spec.path.name}, sha256 {model.spec.sha256[:12]}..., {size}"


def _runtimes(config: Config, models: list[BackendModel]) -> Iterator[Finding]:
    """Whether the chosen runtime infers a picture, and with backend=auto the others."""
    if not models or models[0].is_simulated:
        return
    model = models[0]
    names = [model.backend]
    if config.backend.name == backends.AUTO and model.kind == "cpu":
        names += [name for name in backends.CPU_RUNTIMES if name != model.backend]
    for name in names:

        def infer(name: str = name) -> str:
            backends.resolve(name)
            with _quiet():
                reason = reason_against(name, model.spec, model.options)
            if reason:
                raise UserError(f"{reason}; {remedy_of(name)}, or choose another backend=...")
            return f"infers a black picture{'' if name == model.backend else ' (not chosen)'}"

        yield looked_at(name, infer, "FAULT" if name == model.backend else "note")


def _gpus(models: list[BackendModel]) -> Iterator[Finding]:
    if shutil.which("nvidia-smi") is None and not any(one.kind == "gpu" for one in models):
        return
    from cfdist.distributed.accelerators import count_accelerators

    is_needed = any(one.kind == "gpu" for one in models)

    def count() -> str:
        if number := count_accelerators("gpu"):
            return f"{number}"
        raise UserError(
            "none can be seen; see `nvidia-smi`, CUDA_VISIBLE_DEVICES, and in a container docker "
            "run --gpus=all"
        )

    yield looked_at("GPUs", count, "FAULT" if is_needed else "note")


def _data(config: Config, manifests: list[Manifest]) -> Iterator[Finding]:
    truths: list[Any] = []

    def truth() -> str:
        truths.append(inputs.find_ground_truth(config.dataset))
        boxes = sum(len(one.boxes) for one in truths[0].values())
        return f"{len(truths[0])} pictures, {boxes} boxes"

    yield looked_at("ground truth", truth)
    if not truths:
        if config.dataset.root is None:
            remedy = f"`{COMMAND} job=download`"
            yield Finding("FAULT", "pictures", "dataset.root: not given", remedy)
        return

    def pictures() -> str:
        manifests.append(inputs.find_pictures(config.dataset, truths[0]))
        return f"all {len(manifests[0].items)} of dataset={config.dataset.name}"

    found = looked_at("pictures", pictures)
    if manifests and manifests[0].absent:
        there = len(truths[0]) - manifests[0].absent
        found = Finding(
            "note",
            "pictures",
            f"{there} of {len(truths[0])}: the AP will be that of this part",
            f"for the whole set: `{COMMAND} job=download`",
        )
    yield found


def _ray(
    config: Config, models: list[BackendModel], manifests: list[Manifest], is_sound: bool
) -> list[Finding]:
    """Whether Ray starts or is joined, and has the devices; on a cluster what each node says."""
    found: list[Finding] = []
    cluster = config.cluster

    def start() -> str:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet())
            if not is_sound or not models or not manifests:  # the devices' faults are told above
                stack.enter_context(session(cluster.joined, dashboard=False))
                found.extend(_nodes(config))
                return "starts here" if cluster.joined is None else "joined"
            items = manifests[0].pictures
            run = execution.start(config, models, feeds_pictures=True, pictures=items)
            there = stack.enter_context(run)
            for check in there.checks:
                if check.faults:
                    text = "; ".join(check.faults)
                    remedy = "the run leaves it out; give it the same files and versions"
                    found.append(Finding("note", check.node.host, text, remedy))
            found.extend(_nodes(config))
            plan = there.plan
            return (
                f"{'starts here' if cluster.joined is None else 'joined'}: "
                f"{counted(plan.count, 'device')} x {counted(plan.threads, 'thread')}"
            )

    return [looked_at("Ray", start), *found]


def _nodes(config: Config) -> Iterator[Finding]:
    """What each node of a cluster that was joined says of itself."""
    if config.cluster.joined is None:
        return
    import ray

    from cfdist.distributed.nodes import cluster_nodes
    from cfdist.distributed.preflight import on_node

    asked = {on_node(node, host_findings, False): node for node in cluster_nodes("cpu")}
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=60)
    for ref in ready:
        host = asked[ref].host
        try:
            for one in ray.get(ref):
                yield one._replace(found=f"{host}: {one.found}")
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            yield Finding("note", host, reason, "install this project's environment there")
    for ref in silent:
        yield Finding("note", asked[ref].host, "has not answered within 60 s", "see its load")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a run would print off the screen."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield

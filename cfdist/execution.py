"""What every job with devices decides before its first picture: model, session, plan, memory.

A job calls `find_model` (or `model_of_file`) for each model that its devices run, then `start`,
which connects to Ray, plans the devices and refuses what the machine's memory cannot hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cfdist import backends
from cfdist.backends.choice import choose_cpu_backend
from cfdist.backends.model import BackendModel
from cfdist.config import Config, ModelConfig
from cfdist.devices.memory import needed_bytes, refuse_too_large, stream_bytes
from cfdist.distributed import plan as planning
from cfdist.distributed.journal import RunIdentity, begun_identity
from cfdist.distributed.plan import ACCELERATOR_RESOURCE, DevicePlan
from cfdist.distributed.rounds import MakeWork
from cfdist.distributed.session import session, shared_session
from cfdist.distributed.work import fits_store, item_work, letterboxing_work, materialise
from cfdist.errors import UserError
from cfdist.files import JOURNAL
from cfdist.machine import available_cores, available_memory
from cfdist.model import ModelSpec, locate_model, verify_model
from cfdist.widerface.manifest import Manifest

# The kinds of devices, the rarest first: models of two kinds run beside the rarer one.
_KINDS = ("npu", "gpu", "cpu")


@dataclass(frozen=True)
class Execution:
    """What a job runs on; Ray is connected.

    Attributes:
        models: What each device runs; usually one model.
        plan: The devices.
        dashboard: The dashboard's URL, or `None` without one.
        letterboxes_on_cluster: Whether a stage of a Ray Dataset letterboxes the pictures; else
            each device does.
    """

    models: tuple[BackendModel, ...]
    plan: DevicePlan
    dashboard: str | None
    letterboxes_on_cluster: bool = False


def find_model(config: Config, folder: Path | None = None) -> BackendModel:
    """The model and backend that the configuration names.

    Args:
        config: The job's.
        folder: The run's folder: a run that goes on there keeps the backend that it began with.

    Raises:
        UserError: the backend cannot run the model.
    """
    name, options = config.backend.name, config.backend.model_dump()
    begun = begun_identity(folder / JOURNAL) if folder and name == backends.AUTO else None
    if begun:
        name = begun.backend
    elif backends.is_cpu_auto(name) and config.cluster.address is None:
        return _faster_cpu_model(model_spec(config.model), options)
    backend = backends.resolve(name)
    model = BackendModel(backend, _spec_for_backend(config.model, backend), options)
    model.check()
    return model


def _faster_cpu_model(spec: ModelSpec, options: Mapping[str, Any]) -> BackendModel:
    """The model on the faster of the CPU runtimes that this machine's memory can hold.

    Raises:
        UserError: no runtime takes the model, or none fits.
    """
    names = backends.installed_cpu_runtimes()
    models = [BackendModel(name, spec, options) for name in names]
    free = available_memory()
    fitting = [model for model in models if needed_bytes(model, 1, 1) <= free]
    if not fitting:
        refuse_too_large(models[:1])
    if len(fitting) < len(models):  # a measurement would take the memory that is not there
        model = fitting[0]
        model.check()
        return replace(model, remark=f"{model.backend}, the CPU runtime that fits the free memory")
    return choose_cpu_backend(spec, options, available_cores())


def model_of_file(config: Config, backend: str, file: str) -> BackendModel:
    """Another model file with the configuration's conventions, on a backend.

    Raises:
        UserError: the backend cannot run the file.
    """
    options = config.backend.model_dump()
    model = BackendModel(backends.resolve(backend), model_spec(config.model, file), options)
    model.check()
    return model


def _spec_for_backend(config: ModelConfig, backend: str) -> ModelSpec:
    """The model as a resolved backend takes it: its checkpoint, its file, or none if simulated."""
    if backends.backend_class(backend).capabilities.is_simulated:
        return conventions(config)
    return model_spec(config, config.checkpoint if backend == "torch" else None)


@contextlib.contextmanager
def start(
    config: Config,
    models: Sequence[BackendModel],
    readers: int | None = None,
    streams: int | None = None,
    feeds_pictures: bool = False,
) -> Iterator[Execution]:
    """Connect to Ray and plan the devices; the session is there for the `with` block.

    Args:
        config: The job's.
        models: What each device runs.
        readers: Reader threads of each device; `None`: as configured.
        streams: Inferences that each device takes at once; `None`: as configured.
        feeds_pictures: Whether the devices' work are the data set's pictures, which then may be
            letterboxed elsewhere.

    Raises:
        UserError: the devices are not there, or do not fit this machine, or no cluster answers.
    """
    is_here = config.cluster.address is None
    kind = min((model.kind for model in models), key=_KINDS.index)
    if is_here:
        refuse_too_large(models)
    cluster = config.cluster
    with session(cluster.address, cluster.dashboard, kind, config.devices) as dashboard:
        on_cluster = feeds_pictures and _letterboxes_on_cluster(config.preprocess.where, kind)
        plan = planning.plan_devices(
            kind,
            planning.Wishes(
                config.devices,
                config.pipeline.readers if readers is None else readers,
                config.backend.streams if streams is None else streams,
                stream_bytes(models[0]),
                shares_cpus=on_cluster,
            ),
        )
        if is_here:
            refuse_too_large(models, plan.count, plan.streams, plan.threads)
        yield Execution(tuple(models), plan, dashboard, on_cluster)


def _letterboxes_on_cluster(where: str, kind: str) -> bool:
    """Whether a stage of a Ray Dataset letterboxes the pictures.

    "auto" does so only if the cluster has nodes with CPUs and no device of the run. CPU devices
    use all CPUs of all nodes.
    """
    if where != "auto":
        return where == "cluster"
    resource = ACCELERATOR_RESOURCE[kind]
    if resource is None:
        return False
    import ray

    listed = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in listed if node["Alive"]]
    return any(node.get("CPU", 0) >= 1 and not node.get(resource) for node in nodes)


@dataclass(frozen=True)
class PictureSupply:
    """Where the devices' pictures come from.

    Attributes:
        make_work: Makes the work of some of the manifest's items.
        origin: "device": each device reads and letterboxes; "cluster": a stage does, while the
            devices infer; "store": the pictures are in the object store.
        decoded: Pictures that were read for the object store in this run.
    """

    make_work: MakeWork
    origin: Literal["device", "cluster", "store"]
    decoded: int = 0


def supply_pictures(config: Config, execution: Execution, manifest: Manifest) -> PictureSupply:
    """The work of a run over the data set's pictures; called before the devices start.

    The runs of a sweep share the letterboxed pictures, which the first one materialises.

    Raises:
        UserError: the object store cannot hold two blocks of letterboxed pictures.
    """
    model = execution.models[0]
    size = (model.spec.width, model.spec.height)
    shared = shared_session()
    kept = shared.pictures if shared else None
    if kept and (kept.fingerprint, kept.size) == (manifest.fingerprint, size):
        return PictureSupply(kept.work, "store")
    if shared:
        shared.pictures = None  # other pictures, or of another size
    if _is_kept(config.preprocess.cache, shared is not None, len(manifest.pictures), size):
        pictures = materialise(manifest.pictures, manifest.fingerprint, size)
        if shared:
            shared.pictures = pictures
        decoded = len(manifest.pictures) - pictures.failed
        return PictureSupply(pictures.work, "store", decoded)
    if execution.letterboxes_on_cluster:
        least = model.spec.batch * model.capabilities.group
        return PictureSupply(lambda items: letterboxing_work(items, size, least), "cluster")
    return PictureSupply(item_work, "device")


def _is_kept(cache: bool | str, is_sweep: bool, pictures: int, size: tuple[int, int]) -> bool:
    """Whether the letterboxed pictures are materialised in the object store.

    "auto" does so in a sweep, if the store holds all of them; Ray would spill the others to disk.
    """
    if cache == "auto":
        return is_sweep and fits_store(pictures, size, available_memory())
    return bool(cache)


def model_spec(config: ModelConfig, file: str | None = None) -> ModelSpec:
    """The model that the configuration names, its file found and verified.

    Args:
        config: The model's section.
        file: A model file to take instead of the configured one.

    Raises:
        UserError: no file given, not there, or not the expected one.
    """
    size, sha256 = None, None
    if file is None and config.path is not None:
        file, sha256 = config.path, config.sha256
    elif file is None:
        file, size, sha256 = config.weights.path, config.weights.size, config.weights.sha256
    if file is None:
        raise UserError(
            f"model.path: model={config.name} comes without weights; give the model file, "
            "model.path=FILE"
        )
    path = locate_model(file.replace("{batch}", str(config.batch)))
    return replace(conventions(config), path=path, sha256=verify_model(path, size, sha256))


def conventions(config: ModelConfig) -> ModelSpec:
    """How the model is fed and read, without its file."""
    return ModelSpec(
        name=config.name,
        path=Path(),
        sha256="",
        convention=config.convention,
        outputs=None if config.outputs is None else tuple(config.outputs),
        height=config.height,
        width=config.width,
        color=config.color,
        scale=config.scale,
        mean=_triple(config.mean),
        std=_triple(config.std),
        batch=config.batch,
        top_k=config.top_k,
        nms=config.nms,
    )


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def run_identity(model: BackendModel, manifest: Manifest) -> RunIdentity:
    """What makes a run the same as an interrupted one, see `run_fingerprint`."""
    return RunIdentity(run_fingerprint(model, manifest), model.backend)


def run_fingerprint(model: BackendModel, manifest: Manifest) -> str:
    """SHA-256 of what an interrupted run must share with the run that goes on with it.

    These are weights, conventions, pictures and backend, which decide the detections, and the
    number of passes over the pictures, which decides what is left to do. The batch is not in it:
    the same pictures give the same detections at any batch size.
    """
    spec = asdict(model.spec)
    for key in ("path", "batch"):
        del spec[key]
    identity: dict[str, object] = {
        "model": spec,
        "pictures": manifest.fingerprint,
        "backend": model.backend,
    }
    if manifest.passes > 1:
        identity["passes"] = manifest.passes
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

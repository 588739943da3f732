"""What every job with devices decides before its first picture: model, session, plan, memory.

A job calls `find_model` (or `model_on_backend`) for each model that its devices run, then `start`,
which connects to Ray, plans the devices and refuses what the machine's memory cannot hold.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Literal

from cfdist import __version__, backends
from cfdist.ascend.npu_smi import health_notes, read_host
from cfdist.backends.choice import choose_cpu_backend
from cfdist.backends.model import BackendModel
from cfdist.config import Config, ModelConfig, refuse_unused
from cfdist.devices.memory import needed_bytes, refuse_too_large, stream_bytes
from cfdist.devices.reader import Size
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, chosen
from cfdist.distributed.journal import RunIdentity, begun_identity
from cfdist.distributed.nodes import Node, cluster_nodes
from cfdist.distributed.plan import DevicePlan, Devices, plan_devices, refuse_crowd, refuse_many
from cfdist.distributed.preflight import NodeCheck, check_nodes, naming_left_out
from cfdist.distributed.rounds import MakeWork
from cfdist.distributed.session import session, shared_session
from cfdist.distributed.shipping import read_here, reading_stage, ship_model, shipped_work
from cfdist.distributed.work import (
    KeptPictures,
    Work,
    fits_store,
    item_work,
    keep_off,
    kept_work,
    letterboxing_work,
)
from cfdist.errors import UserError
from cfdist.extensions import is_own_code, load_object
from cfdist.files import JOURNAL
from cfdist.inputs import picture_sizes
from cfdist.machine import available_cores, available_memory
from cfdist.model import ModelSpec, locate_model, verify_model
from cfdist.model.fetched import is_fetched
from cfdist.preprocess import PLAIN, SIDE, View
from cfdist.widerface.manifest import Manifest, WorkItem

_NORMALISATION = ("model.color", "model.mean", "model.scale", "model.std")
_NO_CONVENTIONS = {"path", "sha256", "needs_outputs", "typed_normalisation", "most_pixels"}

# One picture in so many, or a single one, may be too large for the memory: then it fails alone.
MOST_TOO_LARGE = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Execution:
    """What a job runs on; Ray is connected.

    Attributes:
        models: What each device runs; usually one model.
        dashboard: The dashboard's URL, or `None` without one.
        letterboxes_on_cluster: Whether a stage of a Ray Dataset letterboxes the pictures; else
            each device does.
        notes: What a person should know of the devices, a sentence each.
        checks: The nodes of a cluster that was joined.
        sizes: Picture's id -> its width and height, of pictures at their own size.
    """

    models: tuple[BackendModel, ...]
    plan: DevicePlan
    dashboard: str | None
    letterboxes_on_cluster: bool = False
    notes: tuple[str, ...] = ()
    checks: tuple[NodeCheck, ...] = ()
    sizes: Mapping[str, Size] = field(default_factory=dict)


def find_model(config: Config, folder: Path | None = None) -> BackendModel:
    """The model and backend that the configuration names.

    A run that goes on in its folder keeps the backend that it began with.

    Raises:
        UserError: the backend cannot run the model, or does not read a key that was typed.
    """
    model = _backend_model(config, folder)
    refuse_unused(config, [model.backend])
    # job=infer gets the pictures' bytes back from its files with these keys, whatever the model.
    typed = [key for key in _NORMALISATION if key in config.typed() and config.job != "infer"]
    if not typed:
        return model
    spec = replace(model.spec, typed_normalisation=typed[0])
    if spec.path.suffix.lower() == ".onnx":
        from cfdist.backends import onnx_file  # takes its time, and few runs need it here

        if onnx_file.takes_u8(onnx_file.load_onnx(spec)):
            spec.refuse_typed_normalisation("in its own graph")
    return replace(model, spec=spec)


def _backend_model(config: Config, folder: Path | None) -> BackendModel:
    name = config.backend.name
    begun = begun_identity(folder / JOURNAL) if folder and name == backends.AUTO else None
    if begun:
        name = begun.backend
    elif backends.is_cpu_auto(name) and config.cluster.joined is None:
        return _faster_cpu_model(config, _as_shown(model_spec(config.model), config))
    return model_on_backend(config, name)


def _faster_cpu_model(config: Config, spec: ModelSpec) -> BackendModel:
    """The model on the faster of the CPU runtimes that this machine's memory can hold."""
    options = config.backend.model_dump()
    names = backends.installed_cpu_runtimes()
    models = [BackendModel(name, spec, options) for name in names]
    _refuse_device_numbers(config, "cpu")  # now: a measurement takes seconds
    if isinstance(config.devices, int):
        refuse_many(config.devices, available_cores(), models[0].capabilities)
    free = available_memory()
    fitting = [model for model in models if needed_bytes(model, 1, 1) <= free]
    if not fitting:
        refuse_too_large(models[:1])
    if len(fitting) < len(models):  # a measurement would take the memory that is not there
        model = fitting[0]
        model.check()
        return replace(model, remark=f"{model.backend}, the CPU runtime that fits the free memory")
    return choose_cpu_backend(spec, options, available_cores())


def model_on_backend(
    config: Config, name: str, file: str | None = None, key: str = "model.path"
) -> BackendModel:
    """The configuration's model, or another file with its conventions, on a backend.

    The messages about that file name `key`.

    Raises:
        UserError: the backend cannot run the file.
    """
    backend = backends.resolve(name, "backend.name" if file is None else key)
    if file is None and backend == "torch":
        file, key = config.model.checkpoint, "model.checkpoint"
    if file is None and backends.backend_class(backend).capabilities.is_simulated:
        spec = conventions(config.model)
    else:
        spec = model_spec(config.model, file, key)
    spec = _as_shown(spec, config)
    model = BackendModel(backend, spec, config.backend.model_dump())
    model.check()
    return model


def _as_shown(spec: ModelSpec, config: Config) -> ModelSpec:
    """The model with how it sees the pictures.

    Raises:
        UserError: what is found in several views would not be merged.
    """
    shown = config.preprocess
    scales = tuple(shown.scales) if shown.size == "own" else (1.0,)
    spec = replace(spec, size=shown.size, scales=scales, flip=shown.flip, merge=shown.merge)
    if len(spec.views) > 1 and spec.nms is None:
        raise UserError(
            "model.nms=null: with preprocess.flip or several preprocess.scales each face is found "
            "more than once; set model.nms, such as 0.3"
        )
    return spec


@contextlib.contextmanager
def start(
    config: Config,
    models: Sequence[BackendModel],
    readers: int | None = None,
    streams: int | None = None,
    feeds_pictures: bool = False,
    pictures: Sequence[WorkItem] = (),
) -> Iterator[Execution]:
    """Connect to Ray and plan the devices; the session is there for the `with` block.

    Each device runs all models, with reader threads and streams as configured unless they are
    given. If the devices' work are the data set's pictures (`feeds_pictures`), these may be
    letterboxed elsewhere. Nodes of a cluster that do not have the models, or `pictures`, are left
    out.

    Raises:
        UserError: the devices are not there, or do not fit this machine, or no cluster answers.
    """
    is_here = config.cluster.joined is None
    _refuse_unkept(config)
    sized = _with_sizes(config, models, pictures)
    models, notes = sized.models, sized.notes
    kind = _kind(models)
    told = readers, streams, sized.largest
    refuse_here(config, models, *told)
    notes += _npu_notes(config.devices) if is_here and kind == "npu" else ()
    cluster = config.cluster
    joined = (cluster.joined, cluster.dashboard, kind, config.devices, cluster.wait_s)
    with session(*joined, cluster.keep_minutes) as dashboard:
        on_cluster = feeds_pictures and _letterboxes_on_cluster(_where(config), kind)
        if config.dataset.ship:
            models, pictures = [ship_model(model) for model in models], ()
        elif not is_here:  # what was fetched for this host is shipped to the others
            models = [ship_model(one) if is_fetched(one.spec.path) else one for one in models]
        checks = () if is_here else check_nodes(models, pictures, kind)
        without = tuple(check.node.id for check in checks if check.faults)
        if checks:
            keep_off(without)
        nodes = [node for node in cluster_nodes(kind) if node.id not in without]
        with naming_left_out(checks):
            plan = replace(_plan_on(nodes, config, models, *told), without=without)
        plan = _with_limits(plan, config, models, on_cluster)
        yield Execution(tuple(models), plan, dashboard, on_cluster, notes, checks, sized.sizes)


def _kind(models: Sequence[BackendModel]) -> str:
    """What the devices are: models of two kinds run beside the rarer kind of device."""
    return min((model.kind for model in models), key=("npu", "gpu", "cpu").index)


def refuse_here(
    config: Config,
    models: Sequence[BackendModel],
    readers: int | None = None,
    streams: int | None = None,
    largest: str = "",
) -> None:
    """Refuse devices of which it is known before Ray starts that they do not fit; see `start`.

    Raises:
        UserError: there are no such devices, or this machine cannot hold them.
    """
    kind = _kind(models)
    _refuse_device_numbers(config, kind)
    if config.cluster.joined is None:
        refuse_too_large(models, picture=largest)
        if kind == "cpu":  # what the cluster will have is known
            here = [Node(socket.gethostname(), available_cores())]
            _plan_on(here, config, models, readers, streams, largest)


def _plan_on(
    nodes: Sequence[Node],
    config: Config,
    models: Sequence[BackendModel],
    readers: int | None,
    streams: int | None,
    largest: str,
) -> DevicePlan:
    """The devices on these nodes; `largest` names the picture with the largest input.

    Raises:
        UserError: see `start`.
    """
    is_here = config.cluster.joined is None
    if is_here:  # what Ray notes is only a part of it
        nodes = [replace(node, memory=available_memory()) for node in nodes]
    kind = _kind(models)
    plan = plan_devices(
        kind,
        config.devices,
        config.pipeline.readers if readers is None else readers,
        config.backend.streams if streams is None else streams,
        stream_bytes(models[0]),
        nodes,
        _part_of_gpu(config, kind),
    )
    cores = int(sum(node.cpus for node in nodes))
    refuse_crowd(plan, config.devices, max(1, cores), models[0].capabilities)
    for node in nodes:
        room = plan.room(node), plan.streams, plan.threads, node.memory
        refuse_too_large(models, *room, "" if is_here else node.host, largest)
    return plan


def _with_limits(
    plan: DevicePlan, config: Config, models: Sequence[BackendModel], shares_cpus: bool
) -> DevicePlan:
    """A plan with the devices' time limits, and with what ends the run.

    If other tasks need the CPUs while the devices run (`shares_cpus`), the actors take none.
    """
    limit = config.device.timeout
    return replace(
        plan,
        cpus=0.0 if shares_cpus else plan.cpus,
        timeout=None if limit == "auto" else limit,
        first_seconds=max(model.first_seconds for model in models),
        fails_fast=config.on_error == "fail",
        wait_s=config.cluster.wait_s,
        grows=config.devices == "auto",
    )


def _part_of_gpu(config: Config, kind: str) -> float:
    """The part of a GPU that each device has.

    Raises:
        UserError: the devices are no GPUs.
    """
    part = config.backend.gpus_per_device
    if part != 1 and kind != "gpu":
        raise UserError(
            f"backend.gpus_per_device={part:g}: the devices of this run are {kind.upper()}s; leave "
            "it out, or choose a GPU (backend.device=cuda, "
            "backend.providers=[CUDAExecutionProvider,CPUExecutionProvider])"
        )
    return part


def _refuse_unkept(config: Config) -> None:
    """Refuse to keep shipped pictures that no stage letterboxes."""
    is_kept, where = config.preprocess.cache is True, config.preprocess.where
    if config.dataset.ship and is_kept and where != "cluster":
        raise UserError(
            "preprocess.cache=true: with dataset.ship=true only a stage's pictures are kept; add "
            "preprocess.where=cluster, or leave preprocess.cache out"
        )


def _npu_notes(devices: Devices) -> tuple[str, ...]:
    """What is wrong with the NPUs of this host, for the screen and the run's log."""
    chips, unread = read_host()
    names = chosen("npu", devices)
    numbers = range(len(chips)) if names is None else [int(name) for name in names]
    notes = tuple(health_notes(chips, numbers, unread))
    for note in notes:
        log.warning(note)
    return notes


def _refuse_device_numbers(config: Config, kind: str) -> None:
    """Refuse device numbers that would choose nothing, or nothing that is there."""
    devices = config.devices
    if not isinstance(devices, list):
        return
    if kind == "cpu":
        raise UserError(
            f"devices={devices}: CPU devices have no numbers; say how many, devices={len(devices)}"
        )
    if config.cluster.joined is not None:
        raise UserError(
            f"devices={devices}: a cluster that is running gives its devices out itself; say how "
            f"many, devices={len(devices)}, or take cluster.address=local"
        )
    chosen(kind, devices)


@dataclass(frozen=True)
class _Sized:
    """Models, and what they are shown at own size.

    Attributes:
        models: With the largest input's size.
        sizes: See `Execution.sizes`.
        largest: The name of the largest picture that does not fail for its size.
        notes: Which do.
    """

    models: Sequence[BackendModel]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    largest: str = ""
    notes: tuple[str, ...] = ()


def _with_sizes(
    config: Config, models: Sequence[BackendModel], pictures: Sequence[WorkItem]
) -> _Sized:
    """The models, and at own size each picture's size, of which the models get the largest.

    A few pictures that this machine's free memory could not hold, one by one on one device, do not
    count: they fail, and the others are done. Where they are many, the settings are too large.

    Raises:
        UserError: a scale makes a side too short, or a model has not all of the input sizes.
    """
    if config.preprocess.size == "letterbox":
        return _Sized(models)
    sizes = picture_sizes(pictures)
    for scale in config.preprocess.scales:
        _refuse_short_sides(scale, sizes)
    areas = {id: _input_pixels(models[0], size) for id, size in sizes.items()}
    most, too_large = None, list[str]()
    if config.cluster.joined is None and areas:
        free = available_memory()
        fitting = {area for area in {*areas.values()} if _room_for(models, area) <= free}
        too_large = [id for id, area in areas.items() if area not in fitting]
        if 0 < len(too_large) <= max(1, len(areas) // MOST_TOO_LARGE) < len(areas):
            most = max(fitting)
            areas = {id: area for id, area in areas.items() if area in fitting}
    usable = {id: sizes[id] for id in areas}
    models = [
        replace(model, spec=replace(model.spec, most_pixels=most))
        for model in (at_largest_size(model, usable) for model in models)
    ]
    for model in models:
        _refuse_missing_sizes(model, usable)
    largest = max(areas, key=lambda id: areas[id], default="")
    return _Sized(models, sizes, largest, _size_notes(sizes, too_large if most else []))


def _input_pixels(model: BackendModel, size: Size) -> int:
    """The pixels of a picture's largest input."""
    return max(prod(View(scale).input_size(*size)) for scale in model.spec.scales)


def _room_for(models: Sequence[BackendModel], pixels: int) -> int:
    """About the bytes that inputs of so many pixels take on one device with one stream."""
    sized = [replace(one, spec=replace(one.spec, height=1, width=pixels)) for one in models]
    return sum(needed_bytes(model, 1, 1) for model in sized)


def _size_notes(sizes: Mapping[str, Size], names: Sequence[str]) -> tuple[str, ...]:
    """That these pictures will fail because they are too large."""
    if not names:
        return ()
    width, height = sizes[names[0]]
    return (
        f"pictures that this machine's memory cannot hold at their own size, which fail: "
        f"{len(names)}; the first, {names[0]}, is of {width}x{height} pixels",
    )


def _refuse_short_sides(scale: float, sizes: Mapping[str, Size]) -> None:
    """Refuse a scale that makes a picture smaller than the least input of a network."""
    for id, size in sizes.items():
        width, height = View(scale).scaled(*size)
        if scale != 1 and min(width, height) < SIDE <= min(size):
            raise UserError(
                f"preprocess.scales: {scale:g} makes {id} ({size[0]}x{size[1]}) {width}x{height} "
                f"pixels, a side must have {SIDE}; take a larger scale"
            )


def _refuse_missing_sizes(model: BackendModel, sizes: Mapping[str, Size]) -> None:
    """Refuse a model of which it is known that it has no input of some picture's size."""
    known = model.backend_class.known_sizes(model.spec)
    if known is None:
        return
    missing: dict[Size, str] = {}
    for id, size in sizes.items():
        for scale in model.spec.scales:
            width, height = View(scale).input_size(*size)
            if (height, width) not in known:
                missing.setdefault((height, width), id)
    if missing:
        (height, width), id = next(iter(missing.items()))
        shown = ",".join(f"{scale:g}" for scale in model.spec.scales)
        scales = f" preprocess.scales=[{shown}]" * (model.spec.scales != (1.0,))
        others = f", nor of {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"model {model.spec.path}: has no input of {height}x{width} (rows x columns), which "
            f"{id} needs{others}; build it with job=convert convert.sizes=dataset{scales} for "
            f"this data set, or convert.sizes=[...,{height}x{width}]"
        )


def at_largest_size(model: BackendModel, sizes: Mapping[str, Size]) -> BackendModel:
    """The model with the largest input of pictures of these sizes; as it is if there are none."""
    views = [View(scale) for scale in model.spec.scales]
    inputs = [view.input_size(*size) for size in {*sizes.values()} for view in views]
    if not inputs:
        return model
    width, height = max(inputs, key=lambda size: (size[0] * size[1], size))
    return replace(model, spec=replace(model.spec, height=height, width=width))


def _where(config: Config) -> str:
    """Where pictures are read; those at their own size always beside their device."""
    return config.preprocess.where if config.preprocess.size == "letterbox" else "device"


def _letterboxes_on_cluster(where: str, kind: str) -> bool:
    """Whether a stage of a Ray Dataset letterboxes the pictures.

    "auto" does so only if the cluster has nodes with CPUs and no device of the run. CPU devices
    use all CPUs of all nodes.
    """
    if where != "auto":
        return where == "cluster"
    if ACCELERATOR_RESOURCE[kind] is None:
        return False
    return any(node.cpus >= 1 and not node.accelerators for node in cluster_nodes(kind))


@dataclass(frozen=True)
class PictureSupply:
    """Where the devices' pictures come from.

    Attributes:
        origin: "device": each device reads and letterboxes; "cluster": a stage does, while the
            devices infer; "store": an earlier run has left the pictures in the object store.
    """

    make_work: MakeWork
    origin: Literal["device", "cluster", "store"]


def supply_pictures(config: Config, execution: Execution, manifest: Manifest) -> PictureSupply:
    """The work of a run over the data set's pictures.

    The runs of a sweep share the letterboxed pictures, which the first one leaves in the object
    store. It does so unasked if the store holds all of them; Ray would spill the others to disk.
    """
    model = execution.models[0]
    size = (model.spec.width, model.spec.height)
    least = model.spec.batch * model.capabilities.group
    ship, on_cluster = config.dataset.ship, execution.letterboxes_on_cluster
    # Devices that do not see the files cannot letterbox what is to be kept; a stage can.
    kept = _kept_pictures(config, manifest, size) if on_cluster or not ship else None
    is_there = kept is not None and all(item.id in kept.rows for item in manifest.pictures)
    if on_cluster:

        def make_work(items: Sequence[WorkItem]) -> Work:
            add_reading = reading_stage if ship else None
            work = letterboxing_work(items, size, least, kept, add_reading)
            work.read_here = read_here if ship else None
            return work

        return PictureSupply(make_work, "store" if is_there else "cluster")
    if kept is not None:
        origin: Literal["store", "device"] = "store" if is_there else "device"
        return PictureSupply(lambda items: kept_work(items, kept), origin)
    return PictureSupply(device_work(config, execution), "device")


def device_work(config: Config, execution: Execution) -> MakeWork:
    """Makes work whose pictures each device decodes and letterboxes."""
    make: MakeWork = item_work
    if config.dataset.ship:
        least = max(model.spec.batch * model.capabilities.group for model in execution.models)
        make = functools.partial(shipped_work, least=least)
    if config.preprocess.size == "letterbox":
        return make

    def make_sorted(items: Sequence[WorkItem]) -> Work:
        items = by_shape(items, execution.sizes)
        work = make(items)
        work.keys = [item.key for item in items]
        return work

    return make_sorted


def by_shape(items: Sequence[WorkItem], sizes: Mapping[str, Size]) -> list[WorkItem]:
    """The items with those of one input shape together, the largest shape first.

    A batch has one shape. The largest come first because devices should end at the same time.
    """

    def shape(item: WorkItem) -> tuple[int, Size]:
        width, height = PLAIN.input_size(*sizes.get(item.id, (1, 1)))
        return -width * height, (width, height)

    return sorted(items, key=shape)


def _kept_pictures(config: Config, manifest: Manifest, size: Size) -> KeptPictures | None:
    """Those of the sweep, or none yet, to which this run adds its own; `None`: it keeps none."""
    if config.preprocess.size == "own":
        return None
    shared, cache = shared_session(), config.preprocess.cache
    kept = shared.pictures if shared else None
    if kept is None or (kept.fingerprint, kept.size) != (manifest.fingerprint, size):
        kept = KeptPictures(manifest.fingerprint, size)
        if shared:
            shared.pictures = None  # before the free memory is asked for
    missing = sum(item.id not in kept.rows for item in manifest.pictures)
    if cache == "auto":
        cache = shared is not None and fits_store(missing, size)
    if not cache or (shared is None and manifest.passes == 1):  # nobody would come back for them
        return None
    if shared:
        shared.pictures = kept
    return kept


def model_spec(config: ModelConfig, file: str | None = None, key: str = "model.path") -> ModelSpec:
    """The model that the configuration names, or another file; the file is found and verified.

    The messages about that other file name `key`.

    Raises:
        UserError: no file given, not there, or not the expected one.
    """
    size, sha256 = None, None
    if file is None and config.path is not None:
        file, sha256, key = config.path, config.sha256, "model.path"
    elif file is None:
        key = "model.weights.path"
        file, size, sha256 = config.weights.path, config.weights.size, config.weights.sha256
    if file is None:
        raise UserError(
            f"model.path: model={config.name} comes without weights; give the model file, "
            "model.path=FILE"
        )
    path = locate_model(file.replace("{batch}", str(config.batch)), key)
    return replace(conventions(config), path=path, sha256=verify_model(path, size, sha256))


def conventions(config: ModelConfig) -> ModelSpec:
    """How the model is fed and read, without its file.

    Raises:
        UserError: the convention is code that is not there.
    """
    if is_own_code(config.convention):
        load_object(config.convention, "model.convention")
    names = {field.name for field in fields(ModelSpec)} - _NO_CONVENTIONS
    if config.peaks == "threshold" and config.top_k is None and not config.score:
        raise UserError(
            "model.peaks=threshold: without a threshold every cell is a peak; set model.score, "
            "such as 0.02, or a number model.top_k"
        )
    values = config.model_dump(include=names)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    needs_outputs = bool(config.outputs) and "model.outputs" in config.typed()
    return ModelSpec(path=Path(), sha256="", needs_outputs=needs_outputs, **values)


def run_identity(
    model: BackendModel, manifest: Manifest, protocol: str = "official"
) -> RunIdentity:
    """Names what an interrupted run must share with the run that goes on with it.

    The fingerprint covers the program's version, weights, conventions, pictures, the backend and
    those of its settings that change numbers, which decide the detections; the number of passes
    over the pictures, which decides what is left to do; and the protocol, which decides how boxes
    are written. It leaves out the batch: the same pictures give the same detections at any batch
    size. What has a default in `ModelSpec` is left out at that: a run that was begun before there
    was such a key can go on.
    """
    defaults = {one.name: one.default for one in fields(ModelSpec)}
    spec = {key: value for key, value in asdict(model.spec).items() if value != defaults[key]}
    names = ("size", "scales", "flip", "merge")
    views = {f"preprocess.{key}": spec.pop(key) for key in names if key in spec}
    if model.spec.size == "own":  # the pictures' sizes decide
        del spec["height"], spec["width"]
    for key in ("path", "batch", "needs_outputs", "typed_normalisation", "most_pixels"):
        spec.pop(key, None)
    parts = {
        "cfdist": __version__,
        **{f"model.{key}": value for key, value in spec.items()},
        "pictures": len(manifest.pictures),
        "pictures.sha256": manifest.fingerprint,
        "backend": model.backend,
        **{f"backend.{key}": value for key, value in model.numeric_options.items()},
        "dataset.repeat": manifest.passes,
        **views,
        "eval.protocol": protocol,
    }
    text = json.dumps(parts, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return RunIdentity(digest, model.backend, json.loads(text))

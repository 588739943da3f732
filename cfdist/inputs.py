"""From the configuration to what a job works on: the model and the pictures."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from cfdist.backends import backend_class
from cfdist.config import DatasetConfig, ModelConfig
from cfdist.errors import UserError
from cfdist.model import ModelSpec, locate_model, verify_model
from cfdist.sample import SAMPLE_VERSION, ensure_sample
from cfdist.widerface.ground_truth import GroundTruth, load_ground_truth
from cfdist.widerface.manifest import Manifest, build_manifest


def _cache_folder() -> Path:
    """The checkout's own cache; the user's where the checkout cannot be written to."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / ".cache").is_dir() or os.access(checkout, os.W_OK):
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfdist"


SAMPLE_FOLDER = _cache_folder() / f"sample-{SAMPLE_VERSION}"


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


def spec_for_backend(config: ModelConfig, backend: str) -> ModelSpec:
    """The model as a resolved backend takes it: its checkpoint, its file, or none if simulated.

    Raises:
        UserError: no file given, not there, or not the expected one.
    """
    if backend_class(backend).is_simulated:
        return conventions(config)
    return model_spec(config, config.checkpoint if backend == "torch" else None)


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
        mean=tuple(config.mean),
        std=tuple(config.std),
        batch=config.batch,
        top_k=config.top_k,
        nms=config.nms,
    )


def find_ground_truth(config: DatasetConfig) -> GroundTruth:
    """The ground truth of the data set; generates the sample set if it is the one.

    Raises:
        UserError: no folder given, or not the four files in it.
    """
    if config.kind == "sample" and config.ground_truth is not None:
        raise UserError(
            "dataset.ground_truth: the sample set has its own; for your pictures add "
            "dataset=wider_val"
        )
    if config.kind == "sample":
        return _load_ground_truth(ensure_sample(sample_folder(config)).ground_truth)
    if config.ground_truth is None:
        raise UserError(
            "dataset.ground_truth: not given; name the folder with wider_face_val.mat and "
            "wider_{easy,medium,hard}_val.mat"
        )
    return _load_ground_truth(Path(config.ground_truth).expanduser())


def _load_ground_truth(folder: Path) -> GroundTruth:
    """The files' content, read once by all runs of a sweep."""
    files = sorted(folder.glob("*.mat"))
    return _ground_truth_of(folder, tuple(file.stat().st_mtime_ns for file in files))


@functools.lru_cache(maxsize=1)
def _ground_truth_of(folder: Path, _changed: tuple[int, ...]) -> GroundTruth:
    return load_ground_truth(folder)


def find_pictures(config: DatasetConfig, truth: GroundTruth) -> Manifest:
    """The data set's pictures that are there.

    Raises:
        UserError: no folder given, or no picture of the ground truth in it.
    """
    if config.kind == "sample":
        root = ensure_sample(sample_folder(config)).root
    elif config.root is None:
        raise UserError(
            "dataset.root: not given; name the folder that holds images/<event>/<name>.jpg "
            "(WIDER_val)"
        )
    else:
        root = Path(config.root).expanduser()
    return build_manifest(root, truth.ids, config.limit)


def sample_folder(config: DatasetConfig) -> Path:
    """Where the sample set is, or will be generated."""
    return SAMPLE_FOLDER if config.root is None else Path(config.root).expanduser()


def run_fingerprint(spec: ModelSpec, manifest: Manifest, backend: str) -> str:
    """SHA-256 of what an interrupted run must share with the one that goes on with it.

    That is all that decides the detections, weights, conventions, pictures and backend, and the
    number of passes over the pictures, which decides what is left to do. The batch is not in it:
    the same pictures give the same detections at any batch size.
    """
    model = asdict(spec)
    for key in ("path", "batch"):
        del model[key]
    identity = {"model": model, "pictures": manifest.fingerprint, "backend": backend}
    if manifest.passes > 1:
        identity["passes"] = manifest.passes
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

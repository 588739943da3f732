"""From the configuration to the pictures that a job works on, and their ground truth."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfdist.coco.reading import write_prediction_files
from cfdist.config import DatasetConfig
from cfdist.config.installation import CHECKOUT, COMMAND
from cfdist.errors import UserError
from cfdist.files import DISK_IS_FULL, expanded, user_cache_path
from cfdist.preprocess import size_in_header
from cfdist.sample import SAMPLE_VERSION, ensure_sample
from cfdist.storage import copy_here, is_uri, path_or_uri, place_of_file, read, read_head
from cfdist.widerface.ground_truth import (
    GROUND_TRUTH_FILES,
    GroundTruth,
    load_face_labels,
    load_ground_truth,
)
from cfdist.widerface.manifest import Manifest, WorkItem, build_manifest

# What is read of a picture's file for its size: usually, and at most; files on their way at once.
_HEAD_BYTES, _MOST_HEAD_BYTES, _THREADS = 1 << 14, 1 << 24, 16

_GET_BOTH = f"`{COMMAND} job=download` gets both"


def _cache_folder() -> Path:
    """The checkout's own cache; the user's cache without a checkout that can be written to."""
    if CHECKOUT and ((CHECKOUT / ".cache").is_dir() or os.access(CHECKOUT, os.W_OK)):
        return CHECKOUT / ".cache"
    return user_cache_path()


SAMPLE_FOLDER = _cache_folder() / f"sample-{SAMPLE_VERSION}"


def find_ground_truth(config: DatasetConfig) -> GroundTruth:
    """The ground truth of the data set; the sample set is generated if it is not there.

    Raises:
        UserError: no folder given, or the folder lacks one of the four files.
    """
    folder = _ground_truth_source(config)
    paths = [Path(folder), *(Path(folder, name) for name in GROUND_TRUTH_FILES)]
    files = [path for path in paths if path.is_file()]
    return _ground_truth_of(str(folder), tuple(file.stat().st_mtime_ns for file in files))


def find_face_labels(config: DatasetConfig, truth: GroundTruth) -> dict[str, NDArray[np.uint8]]:
    """The labels of the faces that `find_ground_truth` has found, see `load_face_labels`."""
    return load_face_labels(_ground_truth_source(config), truth)


def _ground_truth_source(config: DatasetConfig) -> Path | str:
    if config.kind == "sample" and config.ground_truth is not None:
        raise UserError(
            "dataset.ground_truth: the sample set has its own; for your pictures add "
            "dataset=wider_val"
        )
    if config.kind == "sample":
        return ensure_sample(_sample_folder(config)).ground_truth
    if config.ground_truth is None:
        raise UserError(
            "dataset.ground_truth: not given; name eval_tools.zip, or the folder with "
            f"wider_face_val.mat and wider_{{easy,medium,hard}}_val.mat; {_GET_BOTH}"
        )
    return path_or_uri(config.ground_truth, "dataset.ground_truth")


@functools.lru_cache(maxsize=1)
def _ground_truth_of(source: str, _changed: tuple[int, ...]) -> GroundTruth:
    """The content of the source's files, which all runs of a sweep read once."""
    return load_ground_truth(source)


def find_pictures(config: DatasetConfig, truth: GroundTruth) -> Manifest:
    """The pictures of the ground truth whose files are in the folder or store.

    Raises:
        UserError: no folder given, or no picture of the ground truth in it.
    """
    if config.kind == "sample":
        root: Path | str = ensure_sample(_sample_folder(config)).root
    elif config.root is None:
        raise UserError(
            "dataset.root: not given; name WIDER_val.zip, or the folder that holds "
            f"images/<event>/<name>.jpg (WIDER_val); {_GET_BOTH}"
        )
    else:
        root = path_or_uri(config.root, "dataset.root")
    return build_manifest(root, truth, config.limit, use_damaged=config.damaged == "use")


def picture_sizes(items: Iterable[WorkItem]) -> dict[str, tuple[int, int]]:
    """Id -> width and height of the pictures whose files' beginnings tell them."""
    paths = {item.id: item.path for item in items}
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(_size_of, paths.values())
        return {id: size for id, size in zip(paths, found, strict=True) if size is not None}


def _size_of(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError, MemoryError):
        return size_in_file(path)
    return None


def size_in_file(path: str) -> tuple[int, int] | None:
    """Width and height of a picture whose file's beginning tells them, else `None`.

    Raises:
        OSError: it cannot be read.
    """
    # A large colour profile or preview may come before the size.
    heads = (read_head(path, count) for count in (_HEAD_BYTES, _MOST_HEAD_BYTES))
    return next(filter(None, map(size_in_header, heads)), None)


@contextlib.contextmanager
def prediction_folder(predictions: str | None, scratch: Path) -> Iterator[Path]:
    """A local folder of prediction files, for the `with` block.

    Args:
        predictions: The configuration's: a folder, an archive of one, a COCO file, or a URI.
        scratch: Where those of an archive, a COCO file or a URI lie meanwhile.

    Raises:
        UserError: not given, or the files cannot be read.
    """
    if predictions is None:
        raise UserError(
            "predictions: not given; name the folder of <event>/<name>.txt files, or a COCO file"
        )
    source = path_or_uri(predictions, "predictions")
    if isinstance(source, Path) and not source.is_file():
        yield source
        return
    if scratch.exists():  # of a run that was killed: its files are other predictions
        shutil.rmtree(scratch)
    try:
        try:
            if str(source).lower().endswith(".json"):
                content = read(place_of_file(source))
                write_prediction_files(content, str(source), scratch)
            else:
                copy_here(str(source), scratch)
        except OSError as error:
            if error.errno in DISK_IS_FULL:
                raise
            raise UserError(
                f"predictions={predictions}: {error.strerror or error}; give the folder of "
                "<event>/<name>.txt files, a zip archive of it, a COCO .json, or a URI of one"
            ) from None
        yield scratch
    except UserError as error:
        raise UserError(str(error).replace(str(scratch), str(source))) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sample_folder(config: DatasetConfig) -> Path:
    if config.root is not None and is_uri(config.root):
        raise UserError(
            f"dataset.root={config.root}: the sample set is generated into a folder; name one, or "
            "add dataset=wider_val"
        )
    return SAMPLE_FOLDER if config.root is None else expanded(config.root)

"""The .bin files around `ais_bench`: names, sizes, reading and writing.

An *input tensor* is one picture's model input, `<stem>.bin`: float32 (3, H, W) normalised ("f32")
or uint8 (H, W, 3) BGR ("u8"). A *raw output* is what the model gives for one picture, four files
`<stem>_0.bin` to `<stem>_3.bin`: float32 heat map, size, offset and landmarks of (1, 2, 2, 10)
channels and a quarter of the input's rows and columns. All are raw little-endian numbers in C
order, without a header: only the sizes can be checked. The records of `cfdist.workflow.folders` say
the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist.decode import STRIDE, HeadMaps
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract

SUFFIX = ".bin"
OUTPUTS = len(HeadMaps.CHANNELS)
# dtype of an input tensor -> the name of its form in the configuration and in records.
FORMS = {"float32": "f32", "uint8": "u8"}

# (id, reason) of pictures that could not be used.
Failures = list[tuple[str, str]]


def stem_of(file_name: str) -> str:
    """What ais_bench names a file's outputs after: the file's name up to its first dot."""
    return file_name.partition(".")[0]


def input_name(id: str) -> str:
    """The name of a picture's input tensor, from the picture's id `<event>/<stem>`."""
    return id.rpartition("/")[2] + SUFFIX


def output_names(stem: str) -> tuple[str, ...]:
    """The names of the four files of a raw output."""
    return tuple(f"{stem}_{k}{SUFFIX}" for k in range(OUTPUTS))


def input_contract(spec: ModelSpec, form: str) -> InputContract:
    """What an input tensor holds: a model's float32 input ("f32"), or letterboxed bytes ("u8")."""
    return spec.float_contract() if form == "f32" else InputContract(spec.height, spec.width, None)


def input_bytes(contract: InputContract) -> int:
    """Bytes of one picture's input tensor."""
    return prod(contract.shape(1)) * np.dtype(contract.dtype).itemsize


def output_shapes(spec: ModelSpec) -> tuple[tuple[int, int, int], ...]:
    """(channels, rows, columns) of the four files of a raw output, float32."""
    return tuple((c, spec.height // STRIDE, spec.width // STRIDE) for c in HeadMaps.CHANNELS)


def output_bytes(spec: ModelSpec) -> tuple[int, ...]:
    """Bytes of each of the four files of a raw output."""
    return tuple(prod(shape) * np.dtype(np.float32).itemsize for shape in output_shapes(spec))


@contextlib.contextmanager
def disk_as_user_error(path: Path) -> Iterator[None]:
    """Name the file that the disk does not take in the `with` block.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose "
            "another folder, and run the job again"
        ) from None


def write_raw(path: Path, array: NDArray[Any]) -> None:
    """Write an array's bytes, little-endian, C order.

    Raises:
        UserError: the disk does not take it.
    """
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    with disk_as_user_error(path):
        path.write_bytes(little.data)


def read_raw_into(path: Path | str, row: NDArray[Any]) -> None:
    """Read a file into its C-contiguous place in a batch, u8 or float32.

    Raises:
        ValueError: the file has another size.
        OSError: the file cannot be read.
    """
    if (size := os.path.getsize(path)) != row.nbytes:
        raise ValueError(f"{size} bytes, expected {row.nbytes}")
    row[...] = np.fromfile(path, row.dtype.newbyteorder("<")).reshape(row.shape)


def read_output(paths: Sequence[Path | str], spec: ModelSpec) -> HeadMaps:
    """The head maps of one picture.

    Args:
        paths: The four files.
        spec: The model.

    Raises:
        ValueError: a file has another size.
        OSError: a file cannot be read.
    """
    maps = [np.empty((1, *shape), np.float32) for shape in output_shapes(spec)]
    for path, array in zip(paths, maps, strict=True):
        read_raw_into(path, array)
    return HeadMaps(*maps)


def refuse_existing(folder: Path, key: str) -> None:
    """Refuse a folder that holds something; an empty one is removed.

    Raises:
        UserError: it holds something, or is a file.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    elif folder.exists():
        raise UserError(f"{key}={folder}: is there already; choose another folder or remove it")


def check_space(folder: Path, needed: int, key: str) -> None:
    """Refuse a folder on a disk that is too full.

    Args:
        folder: Where files will be written.
        needed: Their bytes.
        key: The configuration key that named the folder, for messages.

    Raises:
        UserError: the disk has no room.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{key}={folder}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there; "
            "choose a folder on another disk, or job=evaluate, which needs no files"
        )


@contextlib.contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`, for files that move to `folder` when they are whole.

    What is in the new folder at the end of the `with` block is removed.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)

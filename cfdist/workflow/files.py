"""The .bin files around `ais_bench`: names, sizes, reading and writing.

An *input tensor* is one picture's model input, `<stem>.bin`: float32 (3, H, W) normalised ("f32")
or uint8 (H, W, 3) BGR ("u8"). A *raw output* is what the model gives for one picture, four files
`<stem>_0.bin` to `<stem>_3.bin`: float32 heat map, size, offset and landmarks of (1, 2, 2, 10)
channels and a quarter of the input's rows and columns. All are raw little-endian numbers in C
order, without a header: only the sizes can be checked. `cfdist.workflow.records` has the records
that say the rest.
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
FORMS = ("f32", "u8")

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
    """What an input tensor of a form of `FORMS` holds, for a model."""
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
    """Turn a disk that does not take a file in the `with` block into bad input.

    Args:
        path: The file.

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
    content = np.fromfile(path, row.dtype.newbyteorder("<"))
    if content.nbytes != row.nbytes or os.path.getsize(path) != row.nbytes:
        raise ValueError(f"{os.path.getsize(path)} bytes, expected {row.nbytes}")
    row[...] = content.reshape(row.shape)


def write_output(folder: Path, stem: str, heads: HeadMaps, index: int) -> None:
    """Write the raw output of one picture of a batch.

    Raises:
        UserError: the disk does not take it.
    """
    maps = (heads.hm, heads.wh, heads.offset, heads.landmarks)
    for name, array in zip(output_names(stem), maps, strict=True):
        write_raw(folder / name, array[index])


def read_output(paths: Sequence[Path | str], spec: ModelSpec) -> HeadMaps:
    """The head maps of one picture.

    Args:
        paths: The four files.
        spec: The model.

    Raises:
        ValueError: a file has another size.
        OSError: a file cannot be read.
    """
    maps = []
    for path, shape in zip(paths, output_shapes(spec), strict=True):
        maps.append(np.empty((1, *shape), np.float32))
        read_raw_into(path, maps[-1])
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
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which becomes `folder` if the `with` block succeeds."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

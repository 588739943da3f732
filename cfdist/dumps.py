"""The file workflow around `ais_bench`: names, sizes, reading and writing of its .bin files.

A *bin* is one picture's model input, `<stem>.bin`: float32 (3, H, W) normalised ("f32") or uint8
(H, W, 3) BGR ("u8"). A *dump* is one picture's four output files, `<stem>_0.bin` to `<stem>_3.bin`:
float32 heat map, size, offset and landmarks of (1, 2, 2, 10) channels and a quarter of the input's
rows and columns. All are raw little-endian numbers in C order, without a header: only the sizes
can be checked, so a JSON record beside the folder says what no file of it does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist.decode import STRIDE, HeadMaps
from cfdist.errors import UserError
from cfdist.files import write_text
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract
from cfdist.widerface.manifest import WorkItem

SUFFIX = ".bin"
OUTPUTS = len(HeadMaps.CHANNELS)
FORMS = ("f32", "u8")

_FLOAT = np.dtype("<f4")
_DUMP_NAME = re.compile(rf"(.+)_([0-{OUTPUTS - 1}])\{SUFFIX}")


def stem_of(file_name: str) -> str:
    """What ais_bench names a file's outputs after: the file's name up to its first dot."""
    return file_name.partition(".")[0]


def ids_by_stem(ids: Iterable[str]) -> dict[str, str]:
    """The pictures `<event>/<stem>` by their stems, which are all that their files' names keep.

    Raises:
        UserError: a stem that ais_bench would cut, or two pictures of one stem.
    """
    found: dict[str, str] = {}
    for id in ids:
        stem = id.rpartition("/")[2]
        if stem_of(stem) != stem or not stem:
            raise UserError(
                f"picture {id}: its name holds a dot, and ais_bench names outputs up to the first "
                "one; rename the picture, or use job=evaluate, which needs no files"
            )
        if stem in found:
            raise UserError(
                f"pictures {found[stem]} and {id}: their files would have the same name "
                f"{stem}{SUFFIX}; rename one, or use job=evaluate, which needs no files"
            )
        found[stem] = id
    return found


def bin_contract(spec: ModelSpec, form: str) -> InputContract:
    """What a bin of a form of `FORMS` holds, for a model."""
    return spec.float_contract() if form == "f32" else InputContract(spec.height, spec.width, None)


def bin_bytes(contract: InputContract) -> int:
    """Bytes of one picture's bin."""
    return prod(contract.shape(1)) * np.dtype(contract.dtype).itemsize


def write_raw(path: Path, array: NDArray) -> None:
    """Write an array's bytes, little-endian, C order.

    Raises:
        UserError: the disk does not take it.
    """
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    try:
        path.write_bytes(little.data)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose "
            "another folder, and run the job again"
        ) from None


def read_bin_into(path: Path | str, row: NDArray) -> None:
    """Read one bin into its C-contiguous place in a batch, u8 or float32.

    Raises:
        ValueError: the file has another size.
        OSError: the file cannot be read.
    """
    content = np.fromfile(path, row.dtype.newbyteorder("<"))
    if content.nbytes != row.nbytes or os.path.getsize(path) != row.nbytes:
        raise ValueError(f"{os.path.getsize(path)} bytes, expected {row.nbytes}")
    row[...] = content.reshape(row.shape)


def list_bins(folder: Path, key: str) -> list[Path]:
    """The .bin files of a folder, sorted by name.

    Args:
        folder: Where the bins are.
        key: The configuration key that named it, for messages.

    Raises:
        UserError: no such folder, no .bin file in it, or two whose outputs would share a name.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; make it with job=preprocess")
    paths = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    if not paths:
        raise UserError(f"{key}={folder}: no {SUFFIX} file in it; make them with job=preprocess")
    stems: dict[str, Path] = {}
    for path in paths:
        other = stems.setdefault(stem_of(path.name), path)
        if other is not path:
            raise UserError(
                f"{key}={folder}: the outputs of {other.name} and {path.name} would have the same "
                f"names ({stem_of(path.name)}_0{SUFFIX}); rename one of them"
            )
    return paths


def bin_form(sizes: Mapping[Path, int], spec: ModelSpec, key: str) -> str:
    """The form of `FORMS` that most of a folder's files have the size of.

    Raises:
        UserError: none has the size of either.
    """
    wanted = {form: bin_bytes(bin_contract(spec, form)) for form in FORMS}
    counts = {form: sum(size == wanted[form] for size in sizes.values()) for form in FORMS}
    best = max(FORMS, key=counts.__getitem__)
    if counts[best]:
        return best
    path, size = next(iter(sizes.items()))
    raise UserError(
        f"{key}: {path} has {size} bytes, expected {wanted['f32']} (f32) or {wanted['u8']} (u8) "
        f"for model.height={spec.height} model.width={spec.width}; set them to the files' own, or "
        "make the files anew with job=preprocess"
    )


def dump_names(stem: str) -> tuple[str, ...]:
    """The names of a picture's four output files."""
    return tuple(f"{stem}_{k}{SUFFIX}" for k in range(OUTPUTS))


def dump_shapes(spec: ModelSpec) -> tuple[tuple[int, int, int], ...]:
    """(channels, rows, columns) of the four output files."""
    return tuple((c, spec.height // STRIDE, spec.width // STRIDE) for c in HeadMaps.CHANNELS)


def write_dump(folder: Path, stem: str, heads: HeadMaps, index: int) -> None:
    """Write the four output files of one picture of a batch.

    Raises:
        UserError: the disk does not take them.
    """
    maps = (heads.hm, heads.wh, heads.offset, heads.landmarks)
    for name, array in zip(dump_names(stem), maps, strict=True):
        write_raw(folder / name, array[index])


def read_dumps(dumps: Sequence[Sequence[Path]], spec: ModelSpec) -> HeadMaps:
    """Head maps of n pictures from the four files of each.

    Raises:
        ValueError: a file has another size.
        OSError: a file cannot be read.
    """
    maps = []
    for k, shape in enumerate(dump_shapes(spec)):
        stack = np.empty((len(dumps), *shape), np.float32)
        for row, files in zip(stack, dumps, strict=True):
            read_bin_into(files[k], row)
        maps.append(stack)
    return HeadMaps(*maps)


def find_dumps(folder: Path, key: str) -> dict[str, dict[int, Path]]:
    """All output files below a folder by stem and number, however they are sorted into subfolders.

    Args:
        folder: Flat, sorted into event folders, or with a folder for each device.
        key: The configuration key that named it, for messages.

    Raises:
        UserError: no such folder, or one output twice.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; make it with job=infer")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        name = _DUMP_NAME.fullmatch(path.name)
        if name is None:
            continue
        files = found.setdefault(name[1], {})
        other = files.setdefault(int(name[2]), path)
        if other is not path:
            raise UserError(
                f"{key}={folder}: {path.name} is in both {other.parent} and {path.parent}; name "
                "the one folder that is meant"
            )
    return found


def dump_problem(files: Mapping[int, Path], stem: str, spec: ModelSpec) -> str | None:
    """Why a picture's output files cannot be used, with the remedy; `None` where they can."""
    for k, shape in enumerate(dump_shapes(spec)):
        if k not in files:
            return f"{dump_names(stem)[k]} is missing; run job=infer again"
        size, wanted = files[k].stat().st_size, prod(shape) * _FLOAT.itemsize
        if size != wanted:
            hint = ", an OM with float16 outputs?" if size * 2 == wanted else ""
            return (
                f"{files[k]} has {size} bytes, expected {wanted} for model.height={spec.height} "
                f"model.width={spec.width}{hint}; set these to the model's, or run job=infer again"
            )
    return None


@dataclass(frozen=True)
class Dump:
    """A picture and its output files.

    Attributes:
        id: "<event>/<stem>".
        picture: The picture file, for its size.
        files: The four output files.
    """

    id: str
    picture: str
    files: tuple[Path, ...]


def match_dumps(
    found: Mapping[str, Mapping[int, Path]], items: Sequence[WorkItem], spec: ModelSpec
) -> tuple[list[Dump], list[tuple[str, str]]]:
    """Pair pictures with output files, by name.

    Args:
        found: As `find_dumps` gives them.
        items: The pictures; their stems are unique.
        spec: The model.

    Returns:
        What can be used, in the order of `items`, and (picture id, reason) of the others.
    """
    usable, failures = [], []
    for item in items:
        stem = item.id.rpartition("/")[2]
        files = found.get(stem)
        problem = (
            f"no output files {stem}_*{SUFFIX}; run job=preprocess and job=infer for it"
            if files is None
            else dump_problem(files, stem, spec)
        )
        if problem is None:
            usable.append(Dump(item.id, item.path, tuple(files[k] for k in range(OUTPUTS))))
        else:
            failures.append((item.id, problem))
    return usable, failures


@dataclass(frozen=True)
class BinRecord:
    """What a folder of bins holds: `<folder>_preprocess.json`, beside it.

    Not inside: ais_bench takes every file of its input folder.

    Attributes:
        input: "f32" or "u8".
        height: Rows, pixels.
        width: Columns, pixels.
        color: Order of the channels.
        scale: What u8 values were multiplied with.
        mean: Subtracted after that, per channel.
        std: Divided by after that, per channel.
        pictures: How many pictures it was made for.
        fingerprint: `Manifest.fingerprint` of these pictures.
    """

    input: str
    height: int
    width: int
    color: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: int
    fingerprint: str

    FILE = "_preprocess.json"

    @classmethod
    def of(cls, contract: InputContract, pictures: int, fingerprint: str) -> BinRecord:
        """The record of bins that hold a contract's input."""
        form = "f32" if contract.dtype == "float32" else "u8"
        c = contract
        return cls(form, c.height, c.width, c.color, c.scale, c.mean, c.std, pictures, fingerprint)


@dataclass(frozen=True)
class DumpRecord:
    """What a folder of dumps holds: `<folder>_infer.json`, beside it.

    Attributes:
        model: The model's file name.
        sha256: Its digest.
        convention: How its head maps become boxes.
        height: Input rows, pixels.
        width: Input columns, pixels.
        fingerprint: That of the pictures, where the bins had a record.
    """

    model: str
    sha256: str
    convention: str
    height: int
    width: int
    fingerprint: str | None

    FILE = "_infer.json"

    @classmethod
    def of(cls, spec: ModelSpec, fingerprint: str | None) -> DumpRecord:
        """The record of a model's outputs."""
        return cls(
            spec.path.name, spec.sha256, spec.convention, spec.height, spec.width, fingerprint
        )


def record_path(folder: Path, kind: type[BinRecord] | type[DumpRecord]) -> Path:
    """Where a folder's record is, if it has one."""
    return folder.with_name(folder.name + kind.FILE)


def write_record(folder: Path, record: BinRecord | DumpRecord) -> None:
    """Write a folder's record beside it."""
    write_text(record_path(folder, type(record)), json.dumps(asdict(record), indent=2) + "\n")


def check_record(
    folder: Path, expected: BinRecord | DumpRecord, keys: Sequence[str], source: str
) -> dict[str, Any] | None:
    """Refuse a folder that another run made; one without a record passes.

    Args:
        folder: The folder of bins or dumps.
        expected: The record that this run would have made.
        keys: Which of its attributes have to agree.
        source: The configuration key that named the folder, for messages.

    Returns:
        The record's content, `None` where there is none.

    Raises:
        UserError: the record says otherwise, or is none.
    """
    path = record_path(folder, type(expected))
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it") from None
    try:
        there = json.loads(content)
        if not set(asdict(expected)) <= set(there):
            raise ValueError("attributes are missing")
        differing = [key for key in keys if there[key] != _as_json(getattr(expected, key))]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: not the record of a folder of {SUFFIX} files; remove it if the files are good"
        ) from None
    if differing:
        parts = [
            f"{key} {there[key]}, this run has {_as_json(getattr(expected, key))}"
            for key in differing
        ]
        raise UserError(
            f"{source}={folder}: files of another run ({'; '.join(parts)}; says {path.name}); "
            "use that run's settings, choose another folder, or remove the folder and its record"
        )
    return there


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def summary(device_times_ms: Iterable[Sequence[float]], batch: int) -> dict[str, Any]:
    """The content of `<name>_summary.json`, as `python -m ais_bench` leaves it.

    Args:
        device_times_ms: Time of each execution, milliseconds, for each device.
        batch: Pictures an execution.

    Returns:
        `NPU_compute_time` in milliseconds over all devices, and `throughput`, pictures a second:
        1000 * batch / mean, summed over the devices.
    """
    devices = [np.asarray(times, float) for times in device_times_ms if len(times)]
    times = np.concatenate(devices)
    return {
        "NPU_compute_time": {
            "min": float(times.min()),
            "max": float(times.max()),
            "mean": float(times.mean()),
            "median": float(np.median(times)),
            "percentile(99%)": float(np.percentile(times, 99)),
        },
        "throughput": float(sum(1000 * batch / times.mean() for times in devices)),
    }


def refuse_existing(folder: Path, key: str) -> None:
    """Never write into a folder that holds something.

    Raises:
        UserError: it does, or is a file.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    elif folder.exists():
        raise UserError(f"{key}={folder}: is there already; choose another folder or remove it")


def check_space(folder: Path, needed: int, key: str) -> None:
    """See whether the disk has room.

    Raises:
        UserError: it has not.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{key}={folder}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there; "
            "choose a folder on another disk, or job=evaluate, which needs no files"
        )

"""The .bin files around `ais_bench`: names, sizes, contents, records, and the folders they are in.

An *input tensor* is one picture's model input, `<stem>.bin`: float32 (3, H, W) normalised ("f32")
or uint8 (H, W, 3) BGR ("u8"). A *raw output* is what the model gives for one picture, four files
`<stem>_0.bin` to `<stem>_3.bin`: float32 heat map, size, offset and landmarks of (1, 2, 2, 10)
channels and a quarter of the input's rows and columns. All are raw little-endian numbers in C
order, without a header: only the sizes can be checked. A `Record` beside a folder says the rest.

Raw outputs of other programs are read, too: numbered 1 to 4, as the older benchmark tools do, and
as NumPy's .npy or as text, which ais_bench writes with --outfmt.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist.decode import STRIDE, HeadMaps
from cfdist.errors import UserError
from cfdist.files import disk_as_user_error, read_file, walk, write_text
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract
from cfdist.widerface.manifest import WorkItem

SUFFIX = ".bin"
# Of raw outputs; in a folder that has several, the first one counts: text may be anything.
OUTPUT_SUFFIXES = (SUFFIX, ".npy", ".txt")
OUTPUTS = len(HeadMaps.CHANNELS)
# Of a number in text, with what stands between it and the next one.
_MAX_DIGITS = 64
# dtype of an input tensor -> the name of its form in the configuration and in records.
FORMS = {"float32": "f32", "uint8": "u8"}

# The settings of a record that say how letterboxed pictures became input tensors.
_NORMALISATION = ("color", "scale", "mean", "std")

# Words for a setting in messages, if its name says too little.
_MEANINGS = {"fingerprint": "fingerprint of the pictures' names and sizes"}

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


def found_names(found: Mapping[str, Path], stem: str) -> tuple[str, ...] | None:
    """Names of a picture's four files among those of `find_outputs`, there or not.

    Returns:
        Those numbered from 0, or from 1 if there is a fourth one and none with 0; `None` if there
        is no file of the picture.
    """
    for suffix in OUTPUT_SUFFIXES:
        numbers = [k for k in range(OUTPUTS + 1) if f"{stem}_{k}{suffix}" in found]
        if numbers:
            first = int(0 not in numbers and OUTPUTS in numbers)
            return tuple(f"{stem}_{k}{suffix}" for k in range(first, first + OUTPUTS))
    return None


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
    """The head maps of one picture, from its four files.

    Raises:
        ValueError: a file has another size.
        OSError: a file cannot be read.
    """
    maps = [np.empty((1, *shape), np.float32) for shape in output_shapes(spec)]
    for path, array in zip(paths, maps, strict=True):
        match Path(path).suffix:
            case ".npy":
                # Mapped: what a header claims takes no memory before `_fill` has looked at it.
                mapped = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call, unused-ignore]
                _fill(array, mapped, path)
            case ".txt":
                if os.path.getsize(path) > array.size * _MAX_DIGITS:
                    raise ValueError(f"{path} holds more text than {array.size} numbers take")
                _fill(array, _read_text(path), path)
            case _:
                read_raw_into(path, array)
    return HeadMaps(*maps)


def _read_text(path: Path | str) -> NDArray[np.float32]:
    """The numbers of a text file.

    Raises:
        ValueError: there is none, or what is there are none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an empty file, which has no numbers
        values: NDArray[np.float32] = np.loadtxt(path, np.float32, comments=None, ndmin=1)
    return values


def _fill(maps: NDArray[np.float32], values: NDArray[Any], path: Path | str) -> None:
    """Put the numbers of a file into a picture's head maps.

    Raises:
        ValueError: other numbers, or more or fewer of them.
    """
    whole = maps.shape
    is_shaped = values.ndim < 3 or values.shape[-3:] == whole[-3:]
    if values.dtype.kind != "f" or values.size != maps.size or not is_shaped:
        raise ValueError(
            f"{path} holds {values.dtype}{list(values.shape)}, expected floats of {list(whole)}"
        )
    maps[...] = values.reshape(whole)


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
    """Refuse a folder whose disk has fewer free bytes than needed; `key` named the folder.

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


@dataclass(frozen=True)
class Record:
    """The settings that a folder of .bin files was made with, in a JSON file.

    The file is beside the folder, because ais_bench takes every file of its input folder.

    Attributes:
        folder: The folder of .bin files.
        path: The JSON file; a folder that other programs made has none.
        settings: The content that this run would write.
    """

    folder: Path
    path: Path
    settings: dict[str, Any]

    def write(self) -> None:
        """Write the JSON file."""
        write_text(self.path, json.dumps(self.settings, indent=2) + "\n")

    def check(self, keys: Iterable[str], source: str) -> dict[str, Any] | None:
        """Refuse a folder that another run made; a folder without a JSON file passes.

        Args:
            keys: The settings that have to agree. A null in the file agrees with everything.
            source: The configuration key that named the folder, for messages.

        Returns:
            The content of the JSON file, or `None`.

        Raises:
            UserError: a setting differs, or the file is no record.
        """
        try:
            there: dict[str, Any] = json.loads(read_file(self.path))
            if set(self.settings).difference(there):
                raise ValueError("settings are missing")
            differing = [key for key in keys if there[key] not in (None, self.settings[key])]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error}); remove it") from None
        except (ValueError, TypeError):
            raise UserError(
                f"{self.path}: not the record of a folder of {SUFFIX} files; remove it if the "
                "files are good"
            ) from None
        if differing:
            parts = [
                f"{_MEANINGS.get(key, key)} {there[key]}, this run has {self.settings[key]}"
                for key in differing
            ]
            raise UserError(
                f"{source}={self.folder}: files of another run ({'; '.join(parts)}; says "
                f"{self.path.name}); use that run's settings and dataset.*, choose another folder, "
                "or remove the folder and its record"
            )
        return there


def input_record(
    folder: Path, contract: InputContract, pictures: int = 0, fingerprint: str = ""
) -> Record:
    """The record `<folder>_preprocess.json` of a folder of input tensors.

    The record holds the contract of the input tensors, the number of pictures that the folder is
    made for, and the `Manifest.fingerprint` of these pictures.
    """
    keys = ("height", "width", *_NORMALISATION)
    settings = {"input": FORMS[contract.dtype], **{key: getattr(contract, key) for key in keys}}
    settings |= {"mean": list(contract.mean), "std": list(contract.std)}
    settings |= {"pictures": pictures, "fingerprint": fingerprint}
    return Record(folder, folder.with_name(f"{folder.name}_preprocess.json"), settings)


def output_record(folder: Path, spec: ModelSpec, fingerprint: str | None = None) -> Record:
    """The record `<folder>_infer.json` of a folder of raw outputs.

    The record names the model. It holds the pictures' `Manifest.fingerprint` if the folder of input
    tensors had a record.
    """
    keys = ("sha256", "convention", "height", "width")
    settings = {"model": spec.path.name, **{key: getattr(spec, key) for key in keys}}
    settings["fingerprint"] = fingerprint
    return Record(folder, folder.with_name(f"{folder.name}_infer.json"), settings)


def ids_by_stem(ids: Iterable[str]) -> dict[str, str]:
    """The pictures `<event>/<stem>` by their stems, after which their files are named.

    Raises:
        UserError: ais_bench would cut a stem, or two pictures have the same one.
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


def without_input(
    items: Sequence[WorkItem], folder: Path, contract: InputContract
) -> list[WorkItem]:
    """The pictures that have no whole input tensor in a folder."""
    there = {path.name: path.stat().st_size for path in folder.iterdir()}
    size = input_bytes(contract)
    return [item for item in items if there.get(input_name(item.id)) != size]


@dataclass(frozen=True)
class InputFiles:
    """The input tensors of a folder.

    Attributes:
        folder: The folder.
        contract: What each input tensor holds.
        items: The files that can be used; their ids are their stems.
        failures: (stem, reason) of the other files.
        fingerprint: `Manifest.fingerprint` of the pictures, if the folder has a record.
    """

    folder: Path
    contract: InputContract
    items: list[WorkItem]
    failures: Failures
    fingerprint: str | None


def find_inputs(folder: Path, spec: ModelSpec, key: str) -> InputFiles:
    """The input tensors of a folder that fit a model and the folder's record.

    Without a record the files have the form whose size most of them have. `key` is the
    configuration key that named the folder.

    Raises:
        UserError: no input tensor, or input tensors of another run.
    """
    items = _list_inputs(folder, key)
    contracts = {form: input_contract(spec, form) for form in FORMS.values()}
    sizes = {form: input_bytes(contract) for form, contract in contracts.items()}
    counts = {form: sum(item.size == size for item in items) for form, size in sizes.items()}
    form = max(counts, key=counts.__getitem__)
    record = input_record(folder, contracts[form]).check(("height", "width"), key)
    if record:
        form = "f32" if record["input"] == "f32" else "u8"
        input_record(folder, contracts[form]).check(("input", *_NORMALISATION), key)
    usable = [item for item in items if item.size == sizes[form]]
    if not usable:
        raise UserError(
            f"{key}: {items[0].path} has {items[0].size} bytes, expected {sizes['f32']} (f32) or "
            f"{sizes['u8']} (u8) for model.height={spec.height} model.width={spec.width}; set them "
            "to the files' own, or make the files anew with job=preprocess"
        )
    expected = f"expected {sizes[form]} ({form}); run job=preprocess again"
    unusable = [item for item in items if item.size != sizes[form]]
    failures = [(one.id, f"{one.path} has {one.size} bytes, {expected}") for one in unusable]
    fingerprint = record["fingerprint"] if record else None
    return InputFiles(folder, contracts[form], usable, failures, fingerprint)


def refuse_missing(folder: Path, key: str) -> None:
    """Raise `UserError` if the folder of input tensors that `key` names is not there."""
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; make it with job=preprocess")


def _list_inputs(folder: Path, key: str) -> list[WorkItem]:
    """The .bin files of a folder, sorted by name; ids are their stems.

    Raises:
        UserError: no such folder, no .bin file in it, or two whose outputs would share a name.
    """
    refuse_missing(folder, key)
    found: dict[str, WorkItem] = {}
    files = (path for path in folder.iterdir() if path.match(f"?*{SUFFIX}") and path.is_file())
    for path in sorted(files):
        stem = stem_of(path.name)
        if stem in found:
            raise UserError(
                f"{key}={folder}: the outputs of {Path(found[stem].path).name} and {path.name} "
                f"would have the same names ({stem}_0{SUFFIX}); rename one of them"
            )
        found[stem] = WorkItem(stem, str(path), path.stat().st_size)
    if not found:
        raise UserError(f"{key}={folder}: no {SUFFIX} file in it; make them with job=preprocess")
    return list(found.values())


@dataclass(frozen=True)
class RawOutput:
    """A picture and its raw output.

    Attributes:
        id: "<event>/<stem>".
        picture: The picture file, for its size.
        files: The four files.
    """

    id: str
    picture: str
    files: Sequence[str]


def find_outputs(folder: Path, key: str) -> dict[str, Path]:
    """The files of all raw outputs in a folder and its subfolders, by name.

    Subfolders may be events or devices, and the files have one of `OUTPUT_SUFFIXES`. `key` is the
    configuration key that named the folder.

    Raises:
        UserError: no such folder, or two files of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; make it with job=infer")
    found: dict[str, Path] = {}
    named = (
        (parent, fnmatch.filter(names, f"?*_[0-{OUTPUTS}].*")) for parent, _, names in walk(folder)
    )
    there = sorted(Path(parent, name) for parent, names in named for name in names)
    forms = [[path for path in there if path.suffix == suffix] for suffix in OUTPUT_SUFFIXES]
    for path in next(filter(None, forms), []):
        other = found.setdefault(path.name, path)
        if other is not path:
            raise UserError(
                f"{key}={folder}: {path.name} is in both {other.parent} and {path.parent}; name "
                "the one folder that is meant"
            )
    return found


def match_outputs(
    found: Mapping[str, Path], items: Iterable[WorkItem], spec: ModelSpec, source: str, remedy: str
) -> tuple[list[RawOutput], Failures]:
    """Pair pictures of unique stems with the files of `find_outputs`.

    Returns:
        The raw outputs that can be used, in the order of `items`, and (picture id, reason) of the
        other pictures.

    Raises:
        UserError: no raw output can be used; the message names `source` and `remedy`.
    """
    usable: list[RawOutput] = []
    failures: Failures = []
    for item in items:
        stem = item.id.rpartition("/")[2]
        if problem := _output_problem(found, stem, spec):
            failures.append((item.id, problem))
        else:
            files = [str(found[name]) for name in found_names(found, stem) or ()]
            usable.append(RawOutput(item.id, item.path, files))
    if not usable:
        # A picture that has files says more than one that has none.
        stems = {name.rpartition("_")[0] for name in found}
        _, reason = max(failures, key=lambda failure: failure[0].rpartition("/")[2] in stems)
        raise UserError(
            f"{source}: none of the {len(failures)} pictures has output files that can be used "
            f"({len(found)} of any names found); the first: {reason}; {remedy}"
        )
    return usable, failures


def _output_problem(found: Mapping[str, Path], stem: str, spec: ModelSpec) -> str | None:
    """Why a picture's raw output cannot be used, with the remedy; `None` if it can."""
    names = found_names(found, stem)
    if names is None:
        return (
            f"no output files {stem}_*{SUFFIX}; run job=infer again, and before it job=preprocess "
            f"if there is no {stem}{SUFFIX}"
        )
    for name, wanted in zip(names, output_bytes(spec), strict=True):
        if name not in found:
            return f"{name} is missing; run job=infer again"
        size = found[name].stat().st_size
        if size != wanted and name.endswith(SUFFIX):
            hint = ", an OM with float16 outputs?" if size * 2 == wanted else ""
            return (
                f"{found[name]} has {size} bytes, expected {wanted} for model.height={spec.height} "
                f"model.width={spec.width}{hint}; set these to the model's, or run job=infer again"
            )
    return None

"""Which files of a folder a job can use, and which pictures they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import (
    FORMS,
    OUTPUTS,
    SUFFIX,
    Failures,
    input_bytes,
    input_contract,
    input_name,
    output_bytes,
    output_names,
    stem_of,
)
from cfdist.workflow.records import InputRecord

_OUTPUT_NAME = re.compile(rf"(.+)_([0-{OUTPUTS - 1}])\{SUFFIX}")

# Stem -> number of the output -> file.
OutputFiles = Mapping[str, Mapping[int, Path]]


def ids_by_stem(ids: Iterable[str]) -> dict[str, str]:
    """The pictures `<event>/<stem>` by their stems, the part that is in their files' names.

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
        folder: Where they are.
        form: "f32" or "u8".
        items: Those that can be used; their ids are their stems.
        failures: (stem, reason) of the files that cannot be used.
        fingerprint: That of the pictures, if the folder has a record.
    """

    folder: Path
    form: str
    items: list[WorkItem]
    failures: Failures
    fingerprint: str | None


def find_inputs(folder: Path, spec: ModelSpec, key: str) -> InputFiles:
    """The input tensors of a folder that fit a model and the folder's record.

    Args:
        folder: Where they are.
        spec: The model.
        key: The configuration key that named the folder, for messages.

    Raises:
        UserError: no input tensor, or those of another run.
    """
    sizes = {path: path.stat().st_size for path in _list_inputs(folder, key)}
    any_form = InputRecord.of(input_contract(spec, "f32"))
    record = any_form.check(folder, ("height", "width"), key)
    form = record["input"] if record else input_form(sizes, spec, key)
    contract = input_contract(spec, form)
    made_so = InputRecord.of(contract)
    made_so.check(folder, ("input", "color", "scale", "mean", "std"), key)

    wanted = input_bytes(contract)
    items: list[WorkItem] = []
    failures: Failures = []
    for path, size in sizes.items():
        stem = stem_of(path.name)
        if size == wanted:
            items.append(WorkItem(stem, str(path), size))
        else:
            reason = (
                f"{path} has {size} bytes, expected {wanted} ({form}); run job=preprocess again"
            )
            failures.append((stem, reason))
    if not items:
        raise UserError(f"{key}: no file can be used; the first: {failures[0][1]}")
    return InputFiles(folder, form, items, failures, record["fingerprint"] if record else None)


def _list_inputs(folder: Path, key: str) -> list[Path]:
    """The .bin files of a folder, sorted by name.

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


def input_form(sizes: Mapping[Path, int], spec: ModelSpec, key: str) -> str:
    """The form of `FORMS` whose size most of a folder's files have.

    Raises:
        UserError: no file has the size of either form.
    """
    wanted = {form: input_bytes(input_contract(spec, form)) for form in FORMS}
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
    files: tuple[str, ...]


def find_outputs(folder: Path, key: str) -> OutputFiles:
    """All raw outputs below a folder, in whatever subfolders they are.

    Args:
        folder: Flat, sorted into event folders, or with a folder for each device.
        key: The configuration key that named it, for messages.

    Raises:
        UserError: no such folder, or one file twice.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; make it with job=infer")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        name = _OUTPUT_NAME.fullmatch(path.name)
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


def output_problem(files: Mapping[int, Path], stem: str, spec: ModelSpec) -> str | None:
    """Why a picture's raw output cannot be used, with the remedy; `None` if it can."""
    for k, wanted in enumerate(output_bytes(spec)):
        if k not in files:
            return f"{output_names(stem)[k]} is missing; run job=infer again"
        size = files[k].stat().st_size
        if size != wanted:
            hint = ", an OM with float16 outputs?" if size * 2 == wanted else ""
            return (
                f"{files[k]} has {size} bytes, expected {wanted} for model.height={spec.height} "
                f"model.width={spec.width}{hint}; set these to the model's, or run job=infer again"
            )
    return None


def match_outputs(
    found: OutputFiles, items: Sequence[WorkItem], spec: ModelSpec
) -> tuple[list[RawOutput], Failures]:
    """Pair pictures with raw outputs, by name.

    Args:
        found: As `find_outputs` gives them.
        items: The pictures; their stems are unique.
        spec: The model.

    Returns:
        What can be used, in the order of `items`, and (picture id, reason) of the others.
    """
    usable: list[RawOutput] = []
    failures: Failures = []
    for item in items:
        stem = item.id.rpartition("/")[2]
        files = found.get(stem)
        if files is None:
            reason = f"no output files {stem}_*{SUFFIX}; run job=preprocess and job=infer for it"
            failures.append((item.id, reason))
        elif problem := output_problem(files, stem, spec):
            failures.append((item.id, problem))
        else:
            usable.append(
                RawOutput(item.id, item.path, tuple(str(files[k]) for k in sorted(files)))
            )
    return usable, failures

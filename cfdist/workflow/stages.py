"""The steps of the workflow that need no device, as stages of a Ray Dataset: files in, files out.

Ray Data joins the stages of a Dataset into one task a block, so that only names and reasons go
through the object store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from cfdist.decode import decode_detections, finite_pictures, to_peaks
from cfdist.devices.reader import LetterboxedPicture
from cfdist.distributed.actors import end_idle_actors
from cfdist.distributed.work import (
    Slice,
    item_dataset,
    letterbox_stage,
    map_blocks,
    run_stage,
    sources_of,
)
from cfdist.errors import UserError
from cfdist.files import atomic_write, disk_as_user_error
from cfdist.model import ModelSpec
from cfdist.preprocess import (
    InputContract,
    PictureError,
    decode_picture,
    picture_content,
    read_into,
    to_model_input,
)
from cfdist.widerface.manifest import WorkItem
from cfdist.widerface.predictions import STYLES, prediction_text, rows
from cfdist.workflow.files import (
    Failures,
    RawOutput,
    input_name,
    partial_folder,
    read_output,
    write_raw,
)

# Pictures of one task: some hundred milliseconds of work.
BLOCK_ROWS = 16


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    Attributes:
        error: Why the picture failed; `None` if it did not.
        damage: What is wrong with the picture's file; `None` if nothing is.
    """

    error: str | None = None
    damage: str | None = None


@dataclass(frozen=True)
class Written:
    """What became of the pictures of a stage.

    Attributes:
        failures: (id, reason) of the pictures without a file.
        damaged: (id, what is wrong) of the pictures whose own files are damaged.
    """

    failures: Failures
    damaged: list[tuple[str, str]]


# Called when a block ends, with the number of its pictures and the number that failed.
OnDone = Callable[[int, int], None]


def write_inputs(
    items: Sequence[WorkItem], contract: InputContract, folder: Path, on_done: OnDone
) -> Written:
    """Read and letterbox pictures and write the input tensor of each, on all cores.

    Each input tensor appears in `folder` whole or not at all.

    Raises:
        UserError: the disk does not take an input tensor.
    """
    if not items:
        return Written([], [])
    pictures = letterbox_stage(items, (contract.width, contract.height), BLOCK_ROWS)
    with partial_folder(folder) as temporary:

        def write_block(table: pa.Table) -> Iterator[Outcome]:
            for picture in sources_of([Slice(None, 0, len(table))], [table]):
                assert isinstance(picture, LetterboxedPicture)
                if picture.error is None:
                    pixels = picture.pixels.reshape(1, contract.height, contract.width, 3)
                    name = input_name(picture.key)
                    write_raw(temporary / name, to_model_input(pixels, contract))
                    with disk_as_user_error(folder / name):
                        os.replace(temporary / name, folder / name)
                yield Outcome(picture.error, picture.damage)

        return _run(pictures, write_block, on_done)


def write_calibration(items: Sequence[WorkItem], contract: InputContract, path: Path) -> None:
    """Write the input tensors of pictures into one file, one after the other.

    It is what the quantiser AMCT calibrates with: one batch of all pictures. The file appears whole
    or not at all.

    Raises:
        UserError: a picture cannot be used, or the disk does not take the file.
    """
    letterboxed = np.empty((1, contract.height, contract.width, 3), np.uint8)
    with disk_as_user_error(path), atomic_write(path) as temporary, temporary.open("wb") as file:
        for item in items:
            try:
                read_into(item.path, letterboxed[0])
            except PictureError as error:
                raise UserError(
                    f"convert.calibration: {item.path}: {error}; remove it, or ask for fewer "
                    "pictures"
                ) from None
            tensor = to_model_input(letterboxed, contract)
            file.write(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes())


def write_predictions(
    outputs: Sequence[RawOutput], spec: ModelSpec, folder: Path, style: str, on_done: OnDone
) -> Failures:
    """Decode raw outputs and write the prediction file `<folder>/<event>/<stem>.txt` of each.

    `outputs` holds at least one picture, `folder` appears whole or not at all, and `style` is a key
    of `STYLES`.

    Returns:
        (id, reason) of the pictures without prediction file.

    Raises:
        UserError: the disk does not take a prediction file.
    """
    with partial_folder(folder) as partial:

        def write_block(table: pa.Table) -> Iterator[Outcome]:
            for row in table.to_pylist():
                yield Outcome(write_prediction(RawOutput(**row), spec, partial, style))

        written = _run(item_dataset(outputs, BLOCK_ROWS), write_block, on_done)
        partial.rename(folder)
    return written.failures


def _run(
    dataset: Any, write_block: Callable[[pa.Table], Iterator[Outcome]], on_done: OnDone
) -> Written:
    """Write the files of the pictures of a Ray Dataset, on all cores.

    Args:
        dataset: One picture a row; the string column "id" names the picture.
        write_block: Writes the files of a block; yields what became of each picture.
        on_done: Called for each block.

    Raises:
        UserError: `write_block` raised it.
    """

    def write_files(table: pa.Table) -> pa.Table:
        cv2.setNumThreads(1)  # the tasks are the parallelism
        try:
            ids, outcomes = table["id"].to_pylist(), list(write_block(table))
        except UserError as error:  # Ray Data keeps only its text
            ids, outcomes = [None], [Outcome(str(error))]
        columns = {
            "id": ids,
            "error": [one.error for one in outcomes],
            "damage": [one.damage for one in outcomes],
        }
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    end_idle_actors()  # those of a sweep would keep the cores from the stage
    written = Written([], [])
    for table in run_stage(map_blocks(dataset, write_files)):
        failed, damaged = (
            [(row["id"], row[name]) for row in table.to_pylist() if row[name]]
            for name in ("error", "damage")
        )
        if failed and failed[0][0] is None:
            raise UserError(failed[0][1])
        written.failures.extend(failed)
        written.damaged.extend(damaged)
        on_done(len(table), len(failed))
    return written


def write_prediction(output: RawOutput, spec: ModelSpec, folder: Path, style: str) -> str | None:
    """Write the prediction file of one picture; returns why it failed, `None` if it did not.

    Raises:
        UserError: the disk does not take the prediction file.
    """
    try:
        size = picture_size(output.picture)
        heads = read_output(output.files, spec)
    except (PictureError, OSError, ValueError) as error:
        return str(error)
    if not finite_pictures(heads).all():
        is_finite = [bool(np.isfinite(values).all()) for values in heads]
        bad = output.files[is_finite.index(False)]
        return f"{bad} holds NaN or infinite values; run job=infer again"
    peaks = to_peaks(heads, spec)
    (found,) = decode_detections([output.id], np.array([size], np.int32), peaks, spec)
    if found.error is not None:
        return found.error
    table = rows(found.boxes, found.scores, STYLES[style])
    path = folder / f"{output.id}.txt"
    with disk_as_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prediction_text(output.id, table, STYLES[style]), encoding="utf-8")
    return None


def picture_size(path: Path | str) -> tuple[int, int]:
    """Width and height of a picture file in pixels, as stored: EXIF orientation is ignored.

    Only the header of a JPEG is decoded; any other content is decoded whole.

    Raises:
        PictureError: the file cannot be read or is not a picture.
    """
    content = picture_content(str(path))
    try:
        height, width = simplejpeg.decode_jpeg_header(content)[:2]
    except (ValueError, KeyError):
        height, width = decode_picture(content).shape[:2]
    return width, height

"""The steps of the workflow that need no device, as stages of a Ray Dataset: files in, files out.

Ray Data joins the stages of a Dataset into one task a block, so that only names and reasons go
through the object store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from cfdist.decode import decode_detections, finite_pictures, select_peaks
from cfdist.devices.reader import LetterboxedPicture
from cfdist.distributed.work import Slice, item_dataset, letterbox_stage, run_stage, sources_of
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract, PictureError, decode_picture, to_model_input
from cfdist.widerface.manifest import WorkItem
from cfdist.widerface.predictions import STYLES, prediction_text, rows
from cfdist.workflow.files import (
    Failures,
    disk_as_user_error,
    input_name,
    read_output,
    write_raw,
)
from cfdist.workflow.matching import RawOutput

# Pictures of one task: some hundred milliseconds of work.
BLOCK_ROWS = 16

# Of what a stage returns for a block, see `_do_each`.
_COLUMNS = ("id", "error", "refusal")


def write_inputs(
    items: Sequence[WorkItem], contract: InputContract, folder: Path, temporary: Path
) -> Iterator[tuple[int, Failures]]:
    """Read and letterbox pictures and write the input tensor of each, on all cores.

    Args:
        items: The pictures.
        contract: What the input tensors hold.
        folder: Where they appear, each whole or not at all.
        temporary: A folder on the same disk.

    Yields:
        For each block, when it ends: its pictures, and (id, reason) of those without input tensor.

    Raises:
        UserError: the disk does not take an input tensor.
    """
    if items:
        size = (contract.width, contract.height)
        dataset = letterbox_stage(items, size, BLOCK_ROWS).map_batches(
            write_input_block,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"contract": contract, "folder": folder, "temporary": temporary},
            num_cpus=1,
        )
        yield from map(_outcome, run_stage(dataset))


def write_predictions(
    outputs: Sequence[RawOutput], spec: ModelSpec, folder: Path, style: str
) -> Iterator[tuple[int, Failures]]:
    """Decode raw outputs and write the prediction file `<folder>/<event>/<stem>.txt` of each.

    Args:
        outputs: Pictures and their raw outputs.
        spec: How head maps become boxes.
        folder: Where the prediction files go.
        style: A key of `STYLES`.

    Yields:
        For each block, when it ends: its pictures, and (id, reason) of those without prediction
        file.

    Raises:
        UserError: the disk does not take a prediction file.
    """
    if outputs:
        dataset = item_dataset(outputs, BLOCK_ROWS).map_batches(
            write_prediction_block,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"spec": spec, "folder": folder, "style": style},
            num_cpus=1,
        )
        yield from map(_outcome, run_stage(dataset))


def _outcome(table: pa.Table) -> tuple[int, Failures]:
    """The pictures of a block, and which of them failed.

    Raises:
        UserError: the block holds one.
    """
    ids, errors, refusals = (table.column(name).to_pylist() for name in _COLUMNS)
    if refusals[0] is not None:
        raise UserError(refusals[0])
    failures = [(id, error) for id, error in zip(ids, errors, strict=True) if error is not None]
    return len(ids), failures


def _do_each(ids: Sequence[str], do: Callable[[int], str | None]) -> pa.Table:
    """Do something for each picture of a block.

    Args:
        ids: The pictures.
        do: Called with a picture's number in the block; returns why it failed, or `None`.

    Returns:
        String columns id, error and refusal. The last is the message of a UserError, whose class
        would be lost in Ray Data.
    """
    errors: list[str | None] = [None] * len(ids)
    refusal = None
    try:
        for i in range(len(ids)):
            errors[i] = do(i)
    except UserError as error:
        refusal = str(error)
    columns = (ids, errors, [refusal] * len(ids))
    return pa.table([pa.array(column, pa.string()) for column in columns], names=_COLUMNS)


def write_input_block(
    table: pa.Table, contract: InputContract, folder: Path, temporary: Path
) -> pa.Table:
    """Write the input tensors of a block of letterboxed pictures.

    Args:
        table: As `letterbox_block` returns it.
        contract: See `write_inputs`.
        folder: See `write_inputs`.
        temporary: See `write_inputs`.

    Returns:
        See `_do_each`.
    """
    inputs = np.empty(contract.shape(1), contract.dtype)
    pictures = sources_of([Slice(None, 0, len(table))], [table])

    def write(i: int) -> str | None:
        picture = pictures[i]
        assert isinstance(picture, LetterboxedPicture)
        if picture.error is None:
            pixels = picture.pixels.reshape(1, contract.height, contract.width, 3)
            name = input_name(picture.key)
            write_raw(temporary / name, to_model_input(pixels, contract, inputs))
            os.replace(temporary / name, folder / name)
        return picture.error

    return _do_each([picture.key for picture in pictures], write)


def write_prediction_block(table: pa.Table, spec: ModelSpec, folder: Path, style: str) -> pa.Table:
    """Write the prediction files of a block of raw outputs.

    Args:
        table: Columns are the attributes of `RawOutput`.
        spec: See `write_predictions`.
        folder: See `write_predictions`.
        style: See `write_predictions`.

    Returns:
        See `_do_each`.
    """
    cv2.setNumThreads(1)  # the tasks are the parallelism
    outputs = [RawOutput(**row) for row in table.to_pylist()]
    return _do_each(
        [output.id for output in outputs],
        lambda i: write_prediction(outputs[i], spec, folder, style),
    )


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
        maps = (heads.hm, heads.wh, heads.offset, heads.landmarks)
        bad = next(k for k, values in enumerate(maps) if not np.isfinite(values).all())
        return f"{output.files[bad]} holds NaN or infinite values; run job=infer again"
    peaks = select_peaks(heads, spec.top_k)
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
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror or error}") from None
    try:
        height, width = simplejpeg.decode_jpeg_header(content)[:2]
    except ValueError:
        height, width = decode_picture(content).shape[:2]
    return width, height

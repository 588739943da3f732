"""The steps of the file workflow that need no device, as Ray tasks: files in, files out.

Tasks, and so processes, because decoding, numpy's small operations and formatting hold the
interpreter's lock for much of their time; only names and reasons cross the object store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cfdist.decode import select_peaks
from cfdist.distributed.actors import end_other_actors
from cfdist.distributed.cluster import user_error
from cfdist.distributed.device import PeaksBatch, decode_detections
from cfdist.dumps import SUFFIX, Dump, read_dumps, write_raw
from cfdist.model import ModelSpec
from cfdist.picture_size import picture_size
from cfdist.preprocess import InputContract, PictureError, read_into, to_model_input
from cfdist.widerface.manifest import WorkItem
from cfdist.widerface.predictions import STYLES, prediction_text, rows

CHUNK = 16  # pictures a task: some hundred milliseconds of work
TASKS_PER_CORE = 2  # one at work, one waiting

Failures = list[tuple[str, str]]


def run_chunks(
    function: Callable[..., Failures], items: Sequence[Any], *arguments: Any
) -> Iterator[tuple[int, Failures]]:
    """Call `function(chunk, *arguments)` for all chunks of the items, as Ray tasks.

    Yields:
        For each chunk, in any order: its length, and what the function returned.

    Raises:
        UserError: as the function raised it.
    """
    import ray

    # What earlier members of a sweep have left would hold the cores.
    end_other_actors(())
    task = ray.remote(num_cpus=1)(function)
    shared = [ray.put(argument) for argument in arguments]
    limit = TASKS_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: dict[Any, int] = {}
    try:
        for start in range(0, len(items), CHUNK):
            if len(pending) >= limit:
                yield _collect(pending)
            chunk = list(items[start : start + CHUNK])
            pending[task.remote(chunk, *shared)] = len(chunk)
        while pending:
            yield _collect(pending)
    finally:
        for ref in pending:
            ray.cancel(ref)


def _collect(pending: dict[Any, int]) -> tuple[int, Failures]:
    import ray

    (ref,), _ = ray.wait(list(pending), num_returns=1)
    length = pending.pop(ref)
    try:
        return length, ray.get(ref)
    except ray.exceptions.RayError as error:
        raise user_error(error) from None


def write_bins(
    items: Sequence[WorkItem], contract: InputContract, folder: Path, temporary: Path
) -> Failures:
    """Read pictures and write the model's input of each to `<folder>/<stem>.bin`.

    Args:
        items: The pictures.
        contract: The model's input.
        folder: Where the bins appear, each whole or not at all.
        temporary: A folder on the same disk.

    Returns:
        (id, reason) of pictures that could not be used; they get no bin.

    Raises:
        UserError: the disk does not take a bin.
    """
    cv2.setNumThreads(1)  # the tasks are the parallelism
    row = np.empty((contract.height, contract.width, 3), np.uint8)
    inputs = np.empty(contract.shape(1), contract.dtype)
    failures: Failures = []
    for item in items:
        try:
            read_into(item.path, row)
        except PictureError as error:
            failures.append((item.id, str(error)))
            continue
        name = Path(item.id).name + SUFFIX
        write_raw(temporary / name, to_model_input(row[None], contract, inputs))
        os.replace(temporary / name, folder / name)
    return failures


def write_predictions(dumps: Sequence[Dump], spec: ModelSpec, folder: Path, style: str) -> Failures:
    """Decode dumps and write the prediction file `<folder>/<event>/<stem>.txt` of each.

    Args:
        dumps: Pictures and their output files.
        spec: How head maps become boxes.
        folder: Where the prediction files go.
        style: A key of `STYLES`.

    Returns:
        (id, reason) of pictures that could not be used; they get no prediction file.
    """
    cv2.setNumThreads(1)  # the tasks are the parallelism
    failures: Failures = []
    for dump in dumps:
        try:
            size = picture_size(dump.picture)
            heads = read_dumps([dump.files], spec)
        except (PictureError, OSError, ValueError) as error:
            failures.append((dump.id, str(error)))
            continue
        peaks = select_peaks(heads, spec.top_k)
        batch = PeaksBatch((dump.id,), np.array([size], np.int32), peaks, ())
        (found,) = decode_detections(batch, spec)
        if found.error is not None:
            failures.append((dump.id, found.error))
            continue
        table = rows(found.boxes, found.scores, STYLES[style])
        path = folder / f"{dump.id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prediction_text(dump.id, table, STYLES[style]), encoding="utf-8")
    return failures

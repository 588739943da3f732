"""How many pictures a second this host reads, decodes and letterboxes: no model, no Ray."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from cfdist.devices.base import AHEAD
from cfdist.devices.reader import LetterboxedPicture, Reader, Size
from cfdist.distributed.plan import CORES_PER_AUTO_DEVICE, Auto, Devices
from cfdist.errors import UserError
from cfdist.machine import available_cores
from cfdist.widerface.manifest import WorkItem

# Each thread has at least this many pictures, so that the last one of the slowest thread does not
# decide.
PICTURES_A_READER = 16

# Pictures of a chunk. Its threads share it, so that its size hardly matters; the chunks together
# take more memory than a core's own cache holds, as in a device.
CHUNK = 16

MAX_READERS = 1024

Failure = tuple[str, str]  # key of a work item, and why the picture cannot be read


class Faults(NamedTuple):
    """What is wrong with the pictures' files.

    Attributes:
        failures: The pictures that cannot be read.
        damaged: (key, what is wrong with the file) of the damaged ones, whether they failed or not.
    """

    failures: tuple[Failure, ...] = ()
    damaged: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class HostRate:
    """What a number of reader threads reach.

    Attributes:
        readers: Threads that read, decode and letterbox.
        pictures: Pictures read for the figures.
        pictures_per_second: All threads together.
        cpu_ms_per_picture: Processor time, milliseconds.
    """

    readers: int
    pictures: int
    pictures_per_second: float
    cpu_ms_per_picture: float


def reader_counts(cores: int, readers: int | Auto, devices: Devices, kind: str) -> list[int]:
    """1, 2, 4, ... as far as the cores go, the cores, and what the run has; rising.

    What the run has is left out if only Ray can count its devices.

    Args:
        cores: CPU cores of this machine.
        readers: Reader threads of each device, as configured.
        devices: As configured.
        kind: "cpu", "gpu" or "npu".
    """
    counts = {2**i for i in range(cores.bit_length())} | {cores}
    if devices == "auto" and kind == "cpu":
        devices = max(1, cores // CORES_PER_AUTO_DEVICE)
    if readers != "auto" and devices != "auto":
        count = len(devices) if isinstance(devices, list) else devices
        counts.add(min(MAX_READERS, readers * count))
    return sorted(counts)


def measure_host(
    items: Sequence[WorkItem],
    pictures: int,
    size: Size,
    counts: Sequence[int],
    min_seconds: float = 0,
) -> tuple[list[HostRate], Faults]:
    """Read pictures in this process, with each number of threads.

    All are read once before the clock runs: the files are in memory then, and bad ones are known.

    Args:
        items: The pictures, each once.
        pictures: How many to read each time, or `PICTURES_A_READER` for each thread if that is
            more; those that can be read are repeated.
        size: Width and height of the letterboxed pictures, pixels.
        counts: Numbers of reader threads.
        min_seconds: How long each time takes at least.

    Returns:
        The rate of each number of threads, and what is wrong with pictures.

    Raises:
        UserError: no picture can be read, or one only the first time.
    """
    _, faults = read_pictures(items, size, available_cores())
    bad = dict(faults.failures)
    usable = [item for item in items if item.key not in bad]
    if not usable:
        raise UserError(
            f"dataset: none of its {len(items)} pictures can be read; the first, "
            f"{faults.failures[0][0]}: {faults.failures[0][1]}"
        )
    rates = []
    for readers in counts:
        count = max(pictures, PICTURES_A_READER * readers)
        while True:
            rate, (new, _) = read_pictures(usable, size, readers, count)
            if new:
                raise UserError(
                    f"dataset: {new[0][0]} could be read a moment ago, and no longer: {new[0][1]}; "
                    "see to the disk or share that has the pictures"
                )
            seconds = rate.pictures / rate.pictures_per_second
            if seconds >= min_seconds:
                break
            count = ceil(count * min(100.0, 1.1 * min_seconds / seconds))
        rates.append(rate)
    return rates, faults


def read_pictures(
    items: Sequence[WorkItem], size: Size, readers: int, count: int | None = None
) -> tuple[HostRate, Faults]:
    """Read pictures, again and again up to a count, as a device does: several chunks in flight.

    Returns:
        The rate of this number of reader threads, and what is wrong with pictures, in their order.
    """
    # Enough to keep all threads busy while finished chunks are handed over.
    in_flight = ceil(readers / CHUNK) + AHEAD
    reader = Reader(size, readers, CHUNK, in_flight)
    count = len(items) if count is None else count
    # One after the other: of hours of reading all chunks at once would take gigabytes.
    left, lock = itertools.islice(itertools.cycle(items), count), threading.Lock()
    numbers = itertools.count()
    failures: list[tuple[int, Failure]] = []
    damaged: list[tuple[int, Failure]] = []

    def read(_: int) -> None:
        while True:
            with lock:
                number, chunk = next(numbers), list(itertools.islice(left, CHUNK))
            if not chunk:
                return
            with reader.read(chunk) as pictures:
                failures.extend((number, failure) for failure in pictures.failures)
                damaged.extend((number, damage) for damage in pictures.damages.items())

    width, height = size
    black = LetterboxedPicture("", size, np.zeros(height * width * 3, np.uint8))
    with contextlib.closing(reader), ThreadPoolExecutor(in_flight) as callers:
        # Each buffer is filled once: the system finds its memory before the clock runs.
        with contextlib.ExitStack() as held:
            for _ in range(in_flight):
                held.enter_context(reader.read([black] * CHUNK))
        start, start_cpu = time.perf_counter(), time.process_time()
        list(callers.map(read, range(in_flight)))
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    # Chunks end in any order, the pictures of one do not.
    faults = Faults(
        *(
            tuple(fault for _, fault in sorted(found, key=itemgetter(0)))
            for found in (failures, damaged)
        )
    )
    return HostRate(readers, count, count / seconds, 1000 * cpu / count), faults

"""How many pictures a second this host reads, decodes and letterboxes: no model, no Ray."""

from __future__ import annotations

import contextlib
import itertools
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.machine import SWITCH_SECONDS
from cfdist.preprocess import PictureError, read_into
from cfdist.widerface.manifest import WorkItem

# Each feeder has at least so many pictures, so that the slowest one's last does not decide.
PICTURES_A_FEEDER = 16
# As in a device, pictures go into more memory than a core's own cache holds.
SPARE_ROWS = 32


@dataclass(frozen=True)
class HostRate:
    """What so many feeders reach.

    Attributes:
        feeders: Threads that read, decode and letterbox.
        pictures: Pictures read for the figures.
        pictures_per_second: All feeders together.
        cpu_ms_per_picture: Processor time, milliseconds.
    """

    feeders: int
    pictures: int
    pictures_per_second: float
    cpu_ms_per_picture: float


def feeder_counts(cores: int, configured: int | None = None) -> list[int]:
    """1, 2, 4, ... as far as the cores go, the cores, and what the run has; rising."""
    doubled = {2**i for i in range(cores.bit_length())}
    return sorted(doubled | {cores} | ({configured} if configured else set()))


def find_usable(
    items: Sequence[WorkItem], height: int, width: int, feeders: int
) -> tuple[list[WorkItem], list[tuple[str, str]]]:
    """Read every picture once: the files are in memory then, and bad ones are known.

    Returns:
        The pictures that can be read, and (id, reason) of the others.
    """
    with _reading(height, width, feeders) as read_all:
        reasons = read_all(items)
    usable = [item for item, reason in zip(items, reasons, strict=True) if reason is None]
    failures = [
        (item.id, reason) for item, reason in zip(items, reasons, strict=True) if reason is not None
    ]
    return usable, failures


def measure(items: Sequence[WorkItem], height: int, width: int, feeders: int) -> HostRate:
    """Read the pictures with so many threads.

    Args:
        items: Pictures that can be read, whose files are in memory; repeated where they are fewer
            than `PICTURES_A_FEEDER` for each thread.
        height: Rows of the letterboxed pictures, pixels.
        width: Their columns.
        feeders: Threads.
    """
    count = max(len(items), PICTURES_A_FEEDER * feeders)
    work = list(itertools.islice(itertools.cycle(items), count))
    with _reading(height, width, feeders) as read_all:
        start, start_cpu = time.perf_counter(), time.process_time()
        read_all(work)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return HostRate(feeders, count, count / seconds, 1000 * cpu / count)


@contextlib.contextmanager
def _reading(
    height: int, width: int, feeders: int
) -> Iterator[Callable[[Sequence[WorkItem]], list[str | None]]]:
    """Threads that read pictures; gives why each could not be read, `None` where it could."""
    rows: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
    # Not zeros, which would be touched for the first time, and found, while the clock runs.
    for row in np.ones((feeders + SPARE_ROWS, height, width, 3), np.uint8):
        rows.put(row)

    def read(item: WorkItem) -> str | None:
        row = rows.get()
        try:
            read_into(item.path, row)
        except PictureError as error:
            return str(error)
        except MemoryError:
            return "does not fit into memory"
        finally:
            rows.put(row)
        return None

    threads, interval = cv2.getNumThreads(), sys.getswitchinterval()
    # As in a device, where the feeders are the parallelism.
    cv2.setNumThreads(1)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with ThreadPoolExecutor(feeders, thread_name_prefix="feeder") as pool:
            yield lambda items: list(pool.map(read, items))
    finally:
        cv2.setNumThreads(threads)
        sys.setswitchinterval(interval)

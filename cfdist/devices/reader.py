"""Pictures into batch buffers: files are read, decoded and letterboxed, ready pixels are copied."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.devices.activity import Activity
from cfdist.preprocess import PictureError, StoredPicture, decode_into
from cfdist.widerface.manifest import WorkItem

# The longest time that a thread that returns from OpenCV waits for a thread that is busy in Python.
# Python's own 5 ms would leave cores idle for 3 % of the time.
SWITCH_SECONDS = 0.0005

Buffer = Any  # what `bytes` takes: Python 3.10 has no type for it
Size = tuple[int, int]  # width and height of a picture, pixels


@dataclass(frozen=True)
class LetterboxedPicture:
    """A picture that was letterboxed elsewhere.

    Attributes:
        size: The picture's width and height before letterboxing, pixels.
        pixels: (H * W * 3,) u8: rows of the letterboxed picture, BGR.
        error: Why the picture failed; `None` if it did not.
        damage: What is wrong with the picture's file, whether or not the picture failed for that.
        is_kept: Whether an earlier pass or run had it letterboxed, and not this one.
    """

    key: str
    size: Size
    pixels: NDArray[np.uint8]
    error: str | None = None
    damage: str | None = None
    is_kept: bool = False

    def fill(self, row: NDArray[np.uint8]) -> StoredPicture:
        """Copy the pixels into their place in a batch.

        Raises:
            PictureError: the picture failed.
        """
        if self.error is not None:
            raise PictureError(self.error, self.damage)
        np.copyto(row, self.pixels.reshape(row.shape))
        return StoredPicture(self.size, self.damage)


@dataclass(frozen=True)
class ShippedPicture:
    """A picture whose file was read elsewhere.

    Attributes:
        content: The file's bytes; `None` if it cannot be read.
        error: Why it cannot be read; `None` if it can.
    """

    item: WorkItem
    content: Buffer | None
    error: str | None = None

    @property
    def key(self) -> str:
        """See `WorkItem.key`."""
        return self.item.key

    def fill(self, row: NDArray[np.uint8]) -> StoredPicture:
        """Decode and letterbox the picture into its place in a batch, see `decode_into`."""
        if self.content is None:
            raise PictureError(self.error or "not read")
        item = self.item
        return decode_into(bytes(self.content), row, item.use_damaged, item.is_upright)


Source = WorkItem | ShippedPicture | LetterboxedPicture
Outcome = StoredPicture | PictureError


@dataclass(frozen=True)
class ReadPictures:
    """The pictures of a chunk, in a buffer that is reused.

    Attributes:
        keys: n keys of work items.
        sizes: (n, 2) int32 width and height before letterboxing, pixels.
        letterboxed: (n, H, W, 3) u8, BGR.
        failures: (key, reason) of the chunk's pictures that cannot be used.
        damages: Key -> what is wrong with the file, of the damaged ones among all pictures.
    """

    keys: tuple[str, ...]
    sizes: NDArray[np.int32]
    letterboxed: NDArray[np.uint8]
    failures: tuple[tuple[str, str], ...]
    damages: Mapping[str, str] = field(default_factory=dict)


class Reader:
    """Reader threads that fill the rows of batch buffers.

    The threads are the parallelism: OpenCV's own threads are switched off until `close`.

    Attributes:
        decoded: Picture files that were read and decoded, here or elsewhere, for the chunks so far.
        activity: Where the reader notes when it reads.
    """

    def __init__(self, size: Size, threads: int, rows: int, buffers: int) -> None:
        """Start the threads and take the memory.

        A chunk has at most `rows` pictures, letterboxed to `size`; as many chunks as there are
        `buffers` may be in memory at once.
        """
        self._before = cv2.getNumThreads(), sys.getswitchinterval()
        cv2.setNumThreads(1)
        sys.setswitchinterval(SWITCH_SECONDS)
        self.decoded = 0
        self.activity = Activity()
        self._lock = threading.Lock()
        self._thread_count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._buffers: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        width, height = size
        for _ in range(buffers):
            self._buffers.put(np.zeros((rows, height, width, 3), np.uint8))

    @contextlib.contextmanager
    def read(self, sources: Sequence[Source]) -> Iterator[ReadPictures]:
        """Read a chunk; its buffer is the caller's for the `with` block."""
        buffer = self._buffers.get()
        try:
            with self.activity.doing("reading"):
                outcomes = self._fill(sources, buffer)
            keys = [source.key for source in sources]
            read = [(i, one) for i, one in enumerate(outcomes) if isinstance(one, StoredPicture)]
            for target, (source, _) in enumerate(read):
                if target != source:  # a picture before it has failed
                    buffer[target] = buffer[source]
            yield ReadPictures(
                tuple(keys[i] for i, _ in read),
                np.array([one.size for _, one in read], np.int32).reshape(-1, 2),
                buffer[: len(read)],
                tuple(
                    (key, str(one))
                    for key, one in zip(keys, outcomes, strict=True)
                    if isinstance(one, PictureError)
                ),
                {
                    key: one.damage
                    for key, one in zip(keys, outcomes, strict=True)
                    if one.damage is not None
                },
            )
        finally:
            self._buffers.put(buffer)

    def _fill(self, sources: Sequence[Source], buffer: NDArray[np.uint8]) -> list[Outcome]:
        """Put each picture into its row; returns what is known of it, or why it failed."""
        outcomes: list[Outcome] = [PictureError("not read")] * len(sources)
        # Each thread takes the next picture when it has done one: `next` is atomic.
        numbers = iter(range(len(sources)))

        def fill_rows() -> None:
            for i in numbers:
                outcomes[i] = fill_row(sources[i], buffer[i])

        count = min(self._thread_count, len(sources))
        workers = [self._threads.submit(fill_rows) for _ in range(count)]
        # Even if one has raised, wait for all: the buffer goes to another chunk after this.
        wait(workers)
        for worker in workers:
            worker.result()
        with self._lock:
            self.decoded += sum(
                isinstance(outcome, StoredPicture) and not getattr(source, "is_kept", False)
                for source, outcome in zip(sources, outcomes, strict=True)
            )
        return outcomes

    def close(self) -> None:
        """End the threads; OpenCV gets its own threads back."""
        self._threads.shutdown()
        threads, interval = self._before
        cv2.setNumThreads(threads)
        sys.setswitchinterval(interval)


def fill_row(source: Source, row: NDArray[np.uint8]) -> Outcome:
    """Put a picture into its row; returns what is known of it, or why it failed."""
    try:
        return source.fill(row)
    except PictureError as error:
        return error
    except MemoryError:
        return PictureError("does not fit into memory")

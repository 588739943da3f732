"""Pictures into batches: files are read, decoded and letterboxed, ready pixels are copied.

Or, at the pictures' own sizes, decoded, and stretched into batches of one shape each.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from cfdist.devices.activity import Activity
from cfdist.preprocess import (
    PLAIN,
    SIDE,
    DecodedPicture,
    PictureError,
    StoredPicture,
    View,
    decode_into,
    decode_stored,
    stretch_into,
)
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
        return decode_into(self._read(), row, self.item.use_damaged, self.item.is_upright)

    def decode(self) -> DecodedPicture:
        """Decode the picture, see `decode_stored`."""
        return decode_stored(self._read(), self.item.use_damaged, self.item.is_upright)

    def _read(self) -> bytes:
        if self.content is None:
            raise PictureError(self.error or "not read")
        return bytes(self.content)


File = WorkItem | ShippedPicture
Source = File | LetterboxedPicture
Outcome = StoredPicture | PictureError
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class ReadPictures:
    """Pictures of a chunk, in a buffer that is reused.

    Attributes:
        keys: n keys of work items.
        sizes: (n, 2) int32 width and height before letterboxing, pixels.
        letterboxed: (n, H, W, 3) u8, BGR; or stretched, at the pictures' own sizes.
        failures: (key, reason) of the chunk's pictures that cannot be used.
        damages: Key -> what is wrong with the file, of the damaged ones among all pictures.
        view: How these pictures are shown.
    """

    keys: tuple[str, ...]
    sizes: NDArray[np.int32]
    letterboxed: NDArray[np.uint8]
    failures: tuple[tuple[str, str], ...]
    damages: Mapping[str, str] = field(default_factory=dict)
    view: View = PLAIN


class ReaderThreads:
    """Threads that read pictures.

    They are the parallelism: OpenCV's own threads are switched off until `close`.

    Attributes:
        decoded: Picture files that were read and decoded, here or elsewhere, for the chunks so far.
        activity: Where the reader notes when it reads.
    """

    def __init__(self, threads: int) -> None:
        """Start the threads."""
        self._before = cv2.getNumThreads(), sys.getswitchinterval()
        cv2.setNumThreads(1)
        sys.setswitchinterval(SWITCH_SECONDS)
        self.decoded = 0
        self.activity = Activity()
        self._lock = threading.Lock()
        self._thread_count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="reader")

    def each(self, call: Callable[[int], None], count: int) -> None:
        """Call a function with each number below `count`."""
        # Each thread takes the next number when it has done one: `next` is atomic.
        numbers = iter(range(count))

        def take() -> None:
            for i in numbers:
                call(i)

        workers = [self._threads.submit(take) for _ in range(min(self._thread_count, count))]
        # Even if one has raised, wait for all: a buffer goes to another chunk after this.
        wait(workers)
        for worker in workers:
            worker.result()

    def count_decoded(self, pictures: int) -> None:
        """Note that so many files were decoded."""
        with self._lock:
            self.decoded += pictures

    def close(self) -> None:
        """End the threads; OpenCV gets its own threads back."""
        self._threads.shutdown()
        threads, interval = self._before
        cv2.setNumThreads(threads)
        sys.setswitchinterval(interval)


class Reader(ReaderThreads):
    """Fills the rows of batch buffers with letterboxed pictures."""

    def __init__(self, size: Size, threads: int, rows: int, buffers: int) -> None:
        """Start the threads and take the memory.

        A chunk has at most `rows` pictures, letterboxed to `size`; as many chunks as there are
        `buffers` may be in memory at once.
        """
        super().__init__(threads)
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

        def fill(i: int) -> None:
            outcomes[i] = fill_row(sources[i], buffer[i])

        self.each(fill, len(sources))
        self.count_decoded(
            sum(
                isinstance(outcome, StoredPicture) and not getattr(source, "is_kept", False)
                for source, outcome in zip(sources, outcomes, strict=True)
            )
        )
        return outcomes

    def portions(
        self, sources: Sequence[Source], views: Sequence[View] = (PLAIN,)
    ) -> Iterator[ReadPictures]:
        """The whole chunk at once, see `read`, in each view; its scale is that of letterboxing."""
        with self.read(sources) as pictures:
            yield pictures
            for view in views[1:]:
                mirrored = np.ascontiguousarray(pictures.letterboxed[:, :, ::-1])
                yield replace(pictures, letterboxed=mirrored, failures=(), view=view)


class OwnSizeReader(ReaderThreads):
    """Makes batches of pictures at their own size: each batch has one shape."""

    def __init__(
        self,
        threads: int,
        batch: int,
        most_pixels: int | None = None,
        takes: Callable[[int, int], bool] = lambda height, width: True,
    ) -> None:
        """Start the threads; `batch` pictures are decoded at once, and are those of a batch.

        A picture whose input has more than `most_pixels`, or a height and width that the model does
        not take, fails.
        """
        super().__init__(threads)
        self._batch = batch
        self._most_pixels = most_pixels
        self._takes = takes

    def portions(
        self, sources: Sequence[Source], views: Sequence[View] = (PLAIN,)
    ) -> Iterator[ReadPictures]:
        """The chunk in batches of one shape; pictures of several shapes make smaller ones.

        Each picture is decoded once and comes in each view.
        """
        files = cast(Sequence[File], sources)  # nobody letterboxes for a run at own size
        for start in range(0, len(files), self._batch):
            yield from self._batches(files[start : start + self._batch], views)

    def _batches(self, sources: Sequence[File], views: Sequence[View]) -> Iterator[ReadPictures]:
        with self.activity.doing("reading"):
            outcomes = [self._fitting(one, views) for one in self._decode(sources)]
        keys = [source.key for source in sources]
        for view in views:
            shapes: dict[Size, dict[str, DecodedPicture]] = {}
            for key, one in zip(keys, outcomes, strict=True):
                if isinstance(one, DecodedPicture):
                    shapes.setdefault(view.input_size(*one.size), {})[key] = one
            for shape, pictures in shapes.items():
                yield self._batch_of(pictures, shape, view)
        failed = {
            key: one
            for key, one in zip(keys, outcomes, strict=True)
            if isinstance(one, PictureError)
        }
        if failed:
            yield ReadPictures(
                (),
                np.empty((0, 2), np.int32),
                np.empty((0, SIDE, SIDE, 3), np.uint8),
                tuple((key, str(one)) for key, one in failed.items()),
                {key: one.damage for key, one in failed.items() if one.damage is not None},
            )

    def _fitting(
        self, outcome: DecodedPicture | PictureError, views: Sequence[View]
    ) -> DecodedPicture | PictureError:
        """The picture, or that an input of it is too large or of a size that the model lacks."""
        if isinstance(outcome, PictureError):
            return outcome
        inputs = [view.input_size(*outcome.size) for view in views]
        width, height = max(inputs, key=prod)
        if self._most_pixels is not None and width * height > self._most_pixels:
            return PictureError(
                f"an input of {width}x{height} pixels does not fit into memory at "
                "preprocess.size=own"
            )
        for width, height in inputs:
            if not self._takes(height, width):
                return PictureError(
                    f"{height}x{width} (rows x columns) is none of the model's input sizes"
                )
        return outcome

    def _batch_of(
        self, pictures: Mapping[str, DecodedPicture], shape: Size, view: View
    ) -> ReadPictures:
        decoded = [*pictures.values()]
        rows = np.empty((len(decoded), shape[1], shape[0], 3), np.uint8)

        def fill(i: int) -> None:
            stretch_into(decoded[i].pixels, rows[i], view.is_mirrored)

        with self.activity.doing("reading"):
            self.each(fill, len(decoded))
        return ReadPictures(
            tuple(pictures),
            np.array([one.size for one in decoded], np.int32),
            rows,
            (),
            {key: one.damage for key, one in pictures.items() if one.damage is not None},
            view,
        )

    def _decode(self, sources: Sequence[File]) -> list[DecodedPicture | PictureError]:
        outcomes: list[DecodedPicture | PictureError] = [PictureError("not read")] * len(sources)

        def decode(i: int) -> None:
            outcomes[i] = _outcome(sources[i].decode)

        self.each(decode, len(sources))
        self.count_decoded(sum(isinstance(one, DecodedPicture) for one in outcomes))
        return outcomes


def fill_row(source: Source, row: NDArray[np.uint8]) -> Outcome:
    """Put a picture into its row; returns what is known of it, or why it failed."""
    return _outcome(lambda: source.fill(row))


def _outcome(read: Callable[[], _Read]) -> _Read | PictureError:
    """What a call gives, or why its picture failed."""
    try:
        return read()
    except PictureError as error:
        return error
    except MemoryError:
        return PictureError("does not fit into memory")

"""Pictures through Ray's object store, for nodes that do not see the pictures' files.

The driver, or a stage on its node, reads the files; what travels is their content, not the pixels.
A block is there until its rows are done.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from concurrent import futures
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from cfdist.backends.model import BackendModel
from cfdist.distributed.work import Slice, Work, map_blocks
from cfdist.model.shipped import pack
from cfdist.preprocess import PictureError, picture_content
from cfdist.widerface.manifest import WorkItem

# Threads that read ahead: enough for a store that answers after some ten milliseconds.
THREADS = 16

# What is read ahead, at most, beside the pictures that a device takes at once.
AHEAD_BYTES = 64_000_000
AHEAD_ROWS = 256


def shipped_work(items: Sequence[WorkItem], least: int) -> Work:
    """Work whose rows are the contents of picture files, which this process reads.

    A device takes `least` pictures at once.
    """
    return _ShippedWork(items, least)


class _ShippedWork(Work):
    """Reads some files ahead and makes a block of those that a device asks for."""

    def __init__(self, items: Sequence[WorkItem], least: int) -> None:
        super().__init__((), len(items))
        self.read_here = read_here
        self._least = least
        self._coming = iter(items)
        self._next_item = next(self._coming, None)
        self._reading: deque[tuple[WorkItem, futures.Future[_Content]]] = deque()
        self._bytes = 0
        self._threads = futures.ThreadPoolExecutor(THREADS, thread_name_prefix="shipping")
        self._read_ahead()

    @property
    def is_waiting(self) -> bool:
        return self._ready() < min(self._least, len(self._reading))

    def wait(self) -> None:
        futures.wait([content for _, content in list(self._reading)[: self._least]])

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def take(self, size: int) -> list[Slice]:
        import ray

        ready = self._ready()
        if ready < min(size, len(self._reading)):
            ready -= ready % self._least  # whole batches
        rows = [self._reading.popleft() for _ in range(min(size, ready))]
        if not rows:
            return []
        self._bytes -= sum(item.size for item, _ in rows)
        items, contents = zip(*rows, strict=True)
        block = content_block(items, [content.result() for content in contents])
        self._read_ahead()
        return [Slice(ray.put(block), 0, len(block))]

    def _ready(self) -> int:
        """How many of the next pictures have been read."""
        done = (content.done() for _, content in self._reading)
        return next((count for count, one in enumerate(done) if not one), len(self._reading))

    def _read_ahead(self) -> None:
        while self._next_item is not None and (
            len(self._reading) < self._least
            or (self._bytes < AHEAD_BYTES and len(self._reading) < AHEAD_ROWS)
        ):
            item = self._next_item
            self._reading.append((item, self._threads.submit(_read, item.path)))
            self._bytes += item.size
            self._next_item = next(self._coming, None)


_Content = tuple[bytes | None, str | None]  # what the file holds, or why it cannot be read


def _read(path: str) -> _Content:
    try:
        return picture_content(path), None
    except PictureError as error:
        return None, str(error)
    except MemoryError:
        return None, "does not fit into memory"


def read_here(items: Sequence[WorkItem]) -> pa.Table:
    """A block of work items with the contents of their files."""
    return content_block(items, [_read(item.path) for item in items])


def content_block(items: Sequence[WorkItem], contents: Sequence[_Content]) -> pa.Table:
    """A block of work items with the contents of their files, and why one has none."""
    return _with_contents(pa.Table.from_pylist([asdict(item) for item in items]), contents)


def _with_contents(table: pa.Table, contents: Sequence[_Content]) -> pa.Table:
    read, errors = zip(*contents, strict=True)
    table = table.append_column("content", pa.array(read, pa.large_binary()))
    return table.append_column("content_error", pa.array(errors, pa.string()))


def read(table: pa.Table) -> pa.Table:
    """A block of work items with the contents of their files."""
    with futures.ThreadPoolExecutor(THREADS) as threads:
        return _with_contents(table, list(threads.map(_read, table.column("path").to_pylist())))


def ship_model(model: BackendModel) -> BackendModel:
    """The model with its files in Ray's store, from which each device takes them."""
    import ray

    if model.is_simulated:
        return model
    files: Any = ray.put(pack(model.spec))
    fetch: Any = functools.partial(ray.get, files)
    return replace(model, fetch=fetch)


def reading_stage(dataset: Any) -> Any:
    """Add a stage to a Ray Dataset of work items that reads their files on the driver's node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return map_blocks(dataset, read, label_selector={"ray.io/node-id": here}, num_cpus=0)

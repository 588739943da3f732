"""The work of a run: rows of the blocks of a Ray Dataset.

A *block* is one object of Ray's store. Its rows are work items, or letterboxed pictures:

- `item_work` makes blocks of work items; the device reads and letterboxes the files; a single block
  needs no Dataset;
- `letterboxing_work` runs a stage of a Ray Dataset that reads and letterboxes on the CPUs of any
  node, and hands its blocks on as they come;
- `kept_work` has each device letterbox its rows into blocks that stay in the store.

`KeptPictures` remembers the letterboxed blocks for the later passes and the runs of a sweep.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa

from cfdist.devices.reader import LetterboxedPicture, ShippedPicture, Size, Source, fill_row
from cfdist.distributed.failures import user_error
from cfdist.distributed.nodes import all_but
from cfdist.errors import UserError
from cfdist.machine import available_memory
from cfdist.preprocess import PictureError
from cfdist.widerface.manifest import WorkItem

# Work items of one block. A device maps the whole block for each of its chunks.
BLOCK_ROWS = 1000

# Bytes of a block of letterboxed pictures, about: 32 pictures of 800x800.
LETTERBOXED_BLOCK_BYTES = 64_000_000

# Shares of the object store and of the free memory that a sweep's pictures may take unasked.
_STORE_SHARE, _MEMORY_SHARE = 0.6, 0.5

_ITEM_COLUMNS = tuple(field.name for field in fields(WorkItem))

Ref = Any  # Ray's reference to a block
AddStage = Callable[[Any], Any]  # from a Ray Dataset to one with a further stage

# Makes a block of work items' pictures, letterboxed to a size.
MakeBlock = Callable[[Sequence[WorkItem], Size], Ref]

# Makes a block of the contents of work items' files, which this process reads.
ReadHere = Callable[[Sequence[WorkItem]], pa.Table]


@dataclass(frozen=True)
class Slice:
    """Some rows of a block, from `start` to before `stop`; or of work items that are in no block.

    The rows are done for the pass `pass_number` over the data set; 0: each row names its own.
    Rows of `KeptPictures` are marked `is_kept`.
    """

    block: Ref
    start: int
    stop: int
    pass_number: int = 0
    is_kept: bool = False

    def __len__(self) -> int:
        """How many rows."""
        return self.stop - self.start

    def each(self) -> list[Slice]:
        """A slice for each row."""
        rest = self.pass_number, self.is_kept
        return [Slice(self.block, row, row + 1, *rest) for row in range(self.start, self.stop)]


@dataclass
class KeptPictures:
    """Letterboxed pictures in Ray's object store, for later passes and the runs of a sweep.

    Attributes:
        fingerprint: `Manifest.fingerprint` of the pictures.
        size: Width and height of the letterboxed pictures, pixels.
        rows: Picture id -> its row.
    """

    fingerprint: str
    size: Size
    rows: dict[str, Slice] = field(default_factory=dict)

    def add(self, items: Iterable[WorkItem | None], block: Ref) -> None:
        """Keep a block whose rows are the items' letterboxed pictures; `None`: not this row."""
        for row, item in enumerate(items):
            if item is not None:
                self.rows[item.id] = Slice(block, row, row + 1, is_kept=True)

    def forget(self, block: Ref) -> None:
        """Keep a block no longer: it may be lost with a node."""
        for id, row in list(self.rows.items()):
            if row.block == block:
                del self.rows[id]

    def slices(self, items: Sequence[WorkItem]) -> Iterator[Slice]:
        """One row an item: a kept one, or, if there is none when it is asked for, of `items`."""
        for number, item in enumerate(items):
            row = self.rows.get(item.id)
            if row is None:
                yield Slice(items, number, number + 1)
            else:
                yield replace(row, pass_number=item.pass_number)


class Work:
    """Rows to do, taken a chunk at a time.

    Attributes:
        count: How many rows there are in all.
        keys: The work items' keys in the order of the rows, if the work has changed their order.
        read_here: Reads the files of rows that are in no block; `None`: the devices do.
        has_items: The devices read the files of the blocks' rows.
    """

    keys: Sequence[str] | None = None
    read_here: ReadHere | None = None
    has_items = False

    def __init__(
        self, slices: Iterable[Slice], count: int, kept: KeptPictures | None = None
    ) -> None:
        """Begin with the first slice; letterboxed rows are added to `kept`, if it is given."""
        self.count = count
        self._kept = kept
        self._letterboxed: dict[Ref, Sequence[WorkItem | None]] = {}
        self._slices = iter(slices)
        self._current: Slice | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether more rows will come, but none is there now."""
        return False

    def wait(self) -> None:
        """Return once `is_waiting` is false."""

    def close(self) -> None:
        """Make no more rows."""

    def take(self, size: int) -> list[Slice]:
        """The next rows, at most `size`; fewer if there are no more now."""
        taken: list[Slice] = []
        while size > 0:
            if self._current is None:
                self._current = self._next()
            if self._current is None:
                break
            middle = min(self._current.start + size, self._current.stop)
            taken.append(replace(self._current, stop=middle))
            size -= len(taken[-1])
            rest = replace(self._current, start=middle)
            self._current = rest if len(rest) else None
        return list(_joined(taken))

    def letterbox(self, slices: Sequence[Slice], make_block: MakeBlock) -> list[Slice]:
        """The same rows, those of work items that are to be kept letterboxed by `make_block`."""
        import ray

        made: list[Slice] = []
        for one in slices:
            if not isinstance(one.block, Sequence):
                made.append(one)
            elif self.read_here is not None:
                block = ray.put(self.read_here(one.block[one.start : one.stop]))
                made.append(Slice(block, 0, len(one)))
            elif self._kept is None:
                made.append(Slice(tuple(one.block[one.start : one.stop]), 0, len(one)))
            else:
                made += self._letterbox(one, self._kept.size, make_block)
        return made

    def _letterbox(self, one: Slice, size: Size, make_block: MakeBlock) -> Iterator[Slice]:
        step = block_rows(size, 1)
        for start in range(one.start, one.stop, step):
            items = one.block[start : min(start + step, one.stop)]
            block = make_block(items, size)
            self._letterboxed[block] = items
            yield Slice(block, 0, len(items))

    def is_read_by_device(self, slices: Iterable[Slice]) -> bool:
        """Whether the device that has these rows of `letterbox` has read files of theirs."""
        return any(
            self.has_items or isinstance(one.block, tuple) or one.block in self._letterboxed
            for one in slices
        )

    def read_again(self, items: Collection[WorkItem], slices: Iterable[Slice]) -> None:
        """Keep no rows of some items, among these, that were made without their files."""
        ids = {item.id for item in items}
        for block in {one.block for one in slices} & self._letterboxed.keys():
            made = self._letterboxed[block]
            self._letterboxed[block] = [
                None if one is None or one.id in ids else one for one in made
            ]
        if self._kept is not None:
            for id in ids:
                self._kept.rows.pop(id, None)

    def settle(
        self, slices: Sequence[Slice], is_finished: bool, is_block_lost: bool = False
    ) -> None:
        """Keep the rows that `letterbox` had made, if a device has finished them.

        What was kept before stays, unless a block of these is lost.
        """
        if self._kept is None:
            return
        for block in {one.block for one in slices}:
            items = self._letterboxed.pop(block, ())
            if is_finished:
                self._kept.add(items, block)
            elif is_block_lost:
                self._kept.forget(block)

    def _next(self) -> Slice | None:
        return next(self._slices, None)


class _StreamedWork(Work):
    """Work whose blocks are still being made; a thread waits for the next one."""

    def __init__(
        self,
        slices: Generator[Slice, None, None],
        count: int,
        kept: KeptPictures | None = None,
    ) -> None:
        super().__init__(slices, count, kept)
        self._end_stage = slices.close
        self._coming = self._make_next()

    def _make_next(self) -> futures.Future[Slice | None]:
        coming: futures.Future[Slice | None] = futures.Future()

        def make() -> None:
            try:
                coming.set_result(super(_StreamedWork, self)._next())
            except BaseException as error:
                coming.set_exception(error)

        # A daemon: a stage that hangs does not keep the process from its end.
        threading.Thread(target=make, daemon=True).start()
        return coming

    @property
    def is_waiting(self) -> bool:
        return self._current is None and not self._coming.done()

    def wait(self) -> None:
        if self.is_waiting:
            futures.wait([self._coming])

    def close(self) -> None:
        if futures.wait([self._coming], timeout=10).done:
            self._end_stage()

    def _next(self) -> Slice | None:
        if not self._coming.done():
            return None
        try:
            found = self._coming.result()
        except Exception as error:  # Ray Data raises errors of several kinds
            raise user_error(error) from None
        if found is not None:
            self._coming = self._make_next()
        return found


def item_work(items: Sequence[WorkItem]) -> Work:
    """Work whose rows are work items."""
    import ray

    if not items:
        return Work((), 0)
    if len(items) <= BLOCK_ROWS:
        # One block needs no Dataset: importing Ray Data takes up to a second.
        table = pa.Table.from_pylist([asdict(item) for item in items])
        work = Work([Slice(ray.put(table), 0, len(items))], len(items))
    else:
        # Taking the blocks as they are executes no plan: that would start two actors of Ray's own,
        # which take the cores from the devices just as these load.
        refs = item_dataset(items, BLOCK_ROWS).to_arrow_refs()
        blocks = zip(refs, ray.get(refs), strict=True)
        work = Work([Slice(ref, 0, len(block)) for ref, block in blocks], len(items))
    work.has_items = True
    return work


def kept_work(items: Sequence[WorkItem], kept: KeptPictures) -> Work:
    """Work whose rows are kept pictures, or work items that the devices letterbox and keep."""
    return Work(kept.slices(items), len(items), kept)


def letterboxing_work(
    items: Sequence[WorkItem],
    size: Size,
    least: int,
    kept: KeptPictures | None = None,
    add_reading: AddStage | None = None,
) -> Work:
    """Work whose rows are letterboxed pictures, made while the devices take them.

    A block has a multiple of the pictures that a device takes at once, `least`. If they are to be
    kept, each picture is letterboxed once, whatever the number of passes.

    Raises:
        UserError: the object store cannot hold two blocks.
    """
    if kept is None:
        blocks = _letterbox(items, size, least, add_reading)
        return _StreamedWork(blocks, len(items)) if items else Work((), 0)
    new: dict[str, WorkItem] = {}
    for item in items:
        if item.id not in kept.rows:
            new.setdefault(item.id, item)
    if not new:
        return kept_work(items, kept)
    others = [item for item in items if new.get(item.id) is not item]
    blocks = _letterbox([*new.values()], size, least, add_reading)
    work = _StreamedWork(_keep(blocks, [*new.values()], others, kept), len(items), kept)
    work.keys = [item.key for item in (*new.values(), *others)]
    return work


def _keep(
    blocks: Iterable[Slice],
    items: Sequence[WorkItem],
    others: Sequence[WorkItem],
    kept: KeptPictures,
) -> Generator[Slice, None, None]:
    """The blocks, whose rows are the items' pictures, kept as they come; then the others' rows."""
    start = 0
    for one in blocks:
        kept.add(items[start : start + len(one)], one.block)
        start += len(one)
        yield one
    yield from _joined(kept.slices(others))


def _joined(slices: Iterable[Slice]) -> Iterator[Slice]:
    """The slices; those that continue the one before are joined to it."""
    last: Slice | None = None
    for one in slices:
        if last is None:
            last = one
        elif one.block is last.block and (one.start, one.pass_number) == (
            last.stop,
            last.pass_number,
        ):
            last = replace(last, stop=one.stop)
        else:
            yield last
            last = one
    if last is not None:
        yield last


def _letterbox(
    items: Sequence[WorkItem], size: Size, least: int, add_reading: AddStage | None
) -> Generator[Slice, None, None]:
    """The blocks of `letterbox_stage`; refuses a store that cannot hold two of them."""
    rows = block_rows(size, least)
    needed, there = 2 * rows * picture_bytes(size), store_bytes()
    if needed > there:
        raise UserError(
            f"preprocess.where=cluster: Ray's object store has {there / 1e6:.0f} MB, two blocks of "
            f"{rows} letterboxed pictures need {needed / 1e6:.0f} MB; choose a smaller "
            "model.batch, preprocess.where=device, or a cluster with a larger store (ray start "
            "--head --object-store-memory=BYTES)"
        )
    return _blocks_of(letterbox_stage(items, size, rows, add_reading))


def store_bytes() -> int:
    """The size of the cluster's object store, bytes."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("object_store_memory", 0))


def fits_store(pictures: int, size: Size) -> bool:
    """Whether this many letterboxed pictures of this width and height may be kept unasked."""
    room = min(_STORE_SHARE * store_bytes(), _MEMORY_SHARE * available_memory())
    return pictures * picture_bytes(size) <= room


def picture_bytes(size: Size) -> int:
    """Bytes of one letterboxed picture of this width and height."""
    return size[0] * size[1] * 3


def block_rows(size: Size, least: int) -> int:
    """Pictures of one block: about `LETTERBOXED_BLOCK_BYTES`, a multiple of `least`."""
    wanted = max(1, round(LETTERBOXED_BLOCK_BYTES / picture_bytes(size)))
    return least * max(1, wanted // least)


def item_dataset(items: Sequence[Any], rows: int) -> Any:
    """A Ray Dataset of dataclass instances, such as work items, about `rows` rows a block."""
    import ray.data

    # It warns that no core is free.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Blocks come in the order of the items, one for each block of items, however large they are.
    context.execution_options.preserve_order = True
    context.target_max_block_size = None
    # Not `from_arrow`: it needs a free core for tasks of its own, which the devices may hold.
    return ray.data.from_items(
        [asdict(item) for item in items], override_num_blocks=ceil(len(items) / rows)
    )


def load_ray_data(count: int) -> None:
    """Import what making work of so many items needs, which takes a second."""
    if count > BLOCK_ROWS:
        import ray.data  # noqa: F401


def keep_off(nodes: Sequence[str]) -> None:
    """Run no stage of a Dataset on nodes with these ids, from now on."""
    import ray.data

    options = ray.data.DataContext.get_current().execution_options
    options.label_selector = all_but(nodes) or None


def map_blocks(dataset: Any, function: Callable[..., pa.Table], **options: Any) -> Any:
    """Add a stage to a Dataset: a function of a block, with Ray's options; one core a block."""
    return dataset.map_batches(
        function, batch_size=None, batch_format="pyarrow", **{"num_cpus": 1, **options}
    )


def letterbox_stage(
    items: Sequence[WorkItem], size: Size, rows: int, add_reading: AddStage | None = None
) -> Any:
    """A Ray Dataset whose blocks are those of `letterbox`, of `rows` pictures each.

    The files are read where they are letterboxed, or by a stage before, which `add_reading` adds.
    """
    dataset = item_dataset(items, rows)
    dataset = add_reading(dataset) if add_reading else dataset
    return map_blocks(dataset, letterbox, fn_kwargs={"size": size})


def _blocks_of(dataset: Any) -> Generator[Slice, None, None]:
    """The blocks of a Dataset, as they are made."""
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            yield Slice(entry.ref, 0, entry.metadata.num_rows)


def run_stage(dataset: Any) -> Iterator[pa.Table]:
    """Run the stages of a Dataset; the blocks come as they are made.

    Raises:
        UserError: a stage raised it.
    """
    import ray

    # The error itself is enough; Ray Data would log it with a traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        for one in _blocks_of(dataset):
            yield ray.get(one.block)
    except Exception as error:  # Ray Data raises errors of several kinds
        raise user_error(error) from None


def letterbox(table: pa.Table, size: Size, threads: int = 1) -> pa.Table:
    """Read and letterbox the pictures of a block of work items, or of their files' contents.

    Returns:
        The attributes of the work items as columns, and width, height (int32, before letterboxing),
        error (string, null if the picture can be used), damage (string, null but for a damaged
        file, used or not) and pixels (binary of H * W * 3 bytes, u8 BGR).
    """
    import cv2

    cv2.setNumThreads(1)  # the tasks and threads are the parallelism
    width, height = size
    pixels = np.zeros((len(table), height, width, 3), np.uint8)
    with ThreadPoolExecutor(threads) as pool:
        outcomes = list(pool.map(fill_row, _files_of(table), pixels))
    sizes = [(0, 0) if isinstance(one, PictureError) else one.size for one in outcomes]
    errors = [str(one) if isinstance(one, PictureError) else None for one in outcomes]
    columns = {
        "width": pa.array([width for width, _ in sizes], pa.int32()),
        "height": pa.array([height for _, height in sizes], pa.int32()),
        "error": pa.array(errors, pa.string()),
        "damage": pa.array([one.damage for one in outcomes], pa.string()),
        "pixels": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(picture_bytes(size)), len(table), [None, pa.py_buffer(pixels)]
        ),
    }
    items = table.select(_ITEM_COLUMNS)
    return pa.table(dict(zip(items.column_names, items.columns, strict=True)) | columns)


def letterbox_items(items: Sequence[WorkItem], size: Size, threads: int) -> pa.Table:
    """`letterbox` for work items."""
    return letterbox(pa.Table.from_pylist([asdict(item) for item in items]), size, threads)


def _items_of(table: pa.Table) -> list[WorkItem]:
    return [WorkItem(**row) for row in table.select(_ITEM_COLUMNS).to_pylist()]


def _files_of(table: pa.Table) -> list[WorkItem | ShippedPicture]:
    """The rows of a block without pixels."""
    items = _items_of(table)
    if "content" not in table.column_names:
        return list(items)
    contents = (table.column(name) for name in ("content", "content_error"))
    return [
        ShippedPicture(item, content.as_buffer(), error.as_py())
        for item, content, error in zip(items, *contents, strict=True)
    ]


def sources_of(
    slices: Sequence[Slice], blocks: Sequence[pa.Table | tuple[WorkItem, ...]]
) -> list[Source]:
    """The rows of slices, each of the block, or the items, beside it, as a device reads them."""
    found: list[Source] = []
    for one, block in zip(slices, blocks, strict=True):
        if isinstance(block, tuple):
            found += block
            continue
        part = block.slice(one.start, len(one))
        if "pixels" not in block.column_names:
            found += _files_of(part)
            continue
        items = _items_of(part)
        if one.pass_number:
            items = [replace(item, pass_number=one.pass_number) for item in items]
        rows = part.select(["width", "height", "error", "damage"]).to_pylist()
        for item, row, pixels in zip(items, rows, part.column("pixels"), strict=True):
            size = (row.pop("width"), row.pop("height"))
            values = np.frombuffer(pixels.as_buffer(), np.uint8)  # not copied
            found.append(LetterboxedPicture(item.key, size, values, **row, is_kept=one.is_kept))
    return found

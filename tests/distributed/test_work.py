"""Rows of Ray Dataset blocks: taken in chunks, read back as work items or pictures."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.devices.reader import LetterboxedPicture
from cfdist.distributed import work as works
from cfdist.distributed.work import (
    KeptPictures,
    Slice,
    Work,
    block_rows,
    item_work,
    kept_work,
    letterbox,
    letterbox_items,
    letterboxing_work,
    sources_of,
)
from cfdist.errors import UserError
from cfdist.preprocess import read_into
from cfdist.widerface.manifest import WorkItem

SIZE = (64, 32)


@dataclass(eq=False)
class Block:
    """Stands for Ray's reference to a block."""

    table: pa.Table


def taken(work: Work, size: int) -> list[list[Slice]]:
    chunks = []
    while True:
        work.wait()
        chunk = work.take(size)
        if not chunk:
            return chunks
        chunks.append(chunk)


def sources(chunks: list[list[Slice]]):
    import ray

    return [
        source
        for chunk in chunks
        for source in sources_of(chunk, ray.get([one.block for one in chunk]))
    ]


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[WorkItem]:
    import cv2

    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for i in range(9):
        path = folder / f"{i}.jpg"
        cv2.imwrite(str(path), np.full((20 + i, 30, 3), 20 * i, np.uint8))
        found.append(WorkItem(f"e/{i}", str(path), path.stat().st_size))
    found[4] = WorkItem("e/4", str(folder / "gone.jpg"), 0)
    return found


@given(blocks=st.lists(st.integers(1, 9), max_size=6), sizes=st.lists(st.integers(1, 7)))
def test_every_row_is_taken_once_and_in_order(blocks, sizes):
    work = Work([Slice(i, 0, count) for i, count in enumerate(blocks)], sum(blocks))
    rows = []
    for size in [*sizes, sum(blocks)]:
        chunk = work.take(size)
        assert sum(map(len, chunk)) <= size
        rows += [(one.block, row) for one in chunk for row in range(one.start, one.stop)]
    assert rows == [(i, row) for i, count in enumerate(blocks) for row in range(count)]
    assert work.count == len(rows)


@pytest.mark.usefixtures("ray_session")
def test_items_come_back_as_they_were(items):
    again = [WorkItem(item.id, item.path, item.size, 2) for item in items]
    assert sources(taken(item_work([*items, *again]), 4)) == [*items, *again]
    assert taken(item_work([]), 4) == []


@pytest.mark.usefixtures("ray_session")
def test_blocks_are_the_same_with_and_without_a_dataset(items, monkeypatch):
    import ray

    few = item_work(items).take(len(items))
    monkeypatch.setattr(works, "BLOCK_ROWS", 4)
    many = item_work(items).take(len(items))
    assert [len(one) for one in few] == [9]
    assert [len(one) for one in many] == [3, 3, 3]
    (block,) = ray.get([one.block for one in few])
    assert block.equals(pa.concat_tables(ray.get([one.block for one in many])))


def test_a_block_is_letterboxed_row_by_row(items):
    table = pa.Table.from_pylist([vars(item) for item in items])
    block = letterbox(table, SIZE)
    (rest,) = (sources_of([Slice(None, 2, 9)], [block]),)
    assert [one.key for one in rest] == [item.key for item in items[2:]]
    for item, found in zip(items[2:], rest, strict=True):
        if item.id == "e/4":
            assert found.error == "cannot be read: No such file or directory"
            continue
        row = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        assert found.size == read_into(item.path, row).size
        np.testing.assert_array_equal(found.pixels, row.reshape(-1))


def test_a_block_tells_what_is_damaged(items, tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(Path(items[0].path).read_bytes()[:-20])
    half = WorkItem("e/half", str(path), 1)
    table = pa.Table.from_pylist([vars(half), vars(replace(half, use_damaged=True))])
    failed, used = sources_of([Slice(None, 0, 2)], [letterbox(table, SIZE)])
    assert "damaged" in failed.error
    assert failed.damage == used.damage == failed.error
    assert used.error is None
    assert used.size == (30, 20)


@pytest.mark.usefixtures("ray_session")
def test_a_stage_hands_on_all_pictures_in_order(items, monkeypatch):
    monkeypatch.setattr(works, "LETTERBOXED_BLOCK_BYTES", 2 * 64 * 32 * 3)
    work = letterboxing_work(items, SIZE, least=2)
    assert work.count == len(items)
    found = sources(taken(work, 3))
    work.close()
    assert [one.key for one in found] == [item.key for item in items]


def played(work: Work, lost: Collection[int] = ()) -> list[LetterboxedPicture]:
    """The rows of work without Ray; chunks of three, of which some, by their number, are lost."""
    found = []
    for number in itertools.count():
        work.wait()
        chunk = work.take(3)
        if not chunk:
            return found
        slices = work.letterbox(chunk, lambda items, size: Block(letterbox_items(items, size, 2)))
        assert sum(map(len, slices)) == sum(map(len, chunk))
        if number not in lost:
            found += sources_of(slices, [one.block.table for one in slices])
        work.settle(slices, is_finished=number not in lost, is_block_lost=number in lost)


def decoded(found: Iterable[LetterboxedPicture]) -> list[str]:
    return [one.key for one in found if not one.is_kept]


def test_kept_pictures_serve_any_part_and_any_pass(items):
    kept = KeptPictures("fingerprint", SIZE)
    again = [replace(item, pass_number=2) for item in items]
    work = kept_work([*items, *again], kept)
    assert work.count == 18
    first = played(work)
    assert [one.key for one in first] == [item.key for item in (*items, *again)]
    assert decoded(first) == [item.key for item in items]
    for one, other in zip(first[:9], first[9:], strict=True):
        assert (one.size, one.error) == (other.size, other.error)
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert first[4].error == "cannot be read: No such file or directory"

    some = [again[i] for i in (1, 2, 3, 7)]
    found = played(kept_work(some, kept))
    assert [one.key for one in found] == [item.key for item in some]
    assert decoded(found) == []


def test_a_chunk_that_is_lost_keeps_nothing_and_its_kept_blocks_are_made_again(items):
    kept = KeptPictures("fingerprint", SIZE)
    assert len(played(kept_work(items, kept), lost=[1])) == 6
    assert sorted(kept.rows) == [items[i].id for i in (0, 1, 2, 6, 7, 8)]
    assert decoded(played(kept_work(items[3:6], kept))) == [item.key for item in items[3:6]]
    assert len(kept.rows) == 9
    played(kept_work(items, kept), lost=[2])  # its block may be gone with a node
    assert decoded(played(kept_work(items, kept))) == [item.key for item in items[6:]]


def test_blocks_of_a_large_chunk_are_bounded(items, monkeypatch):
    monkeypatch.setattr(works, "LETTERBOXED_BLOCK_BYTES", 2 * 64 * 32 * 3)
    work = kept_work(items, KeptPictures("fingerprint", SIZE))
    made = []
    slices = work.letterbox(work.take(5), lambda items, size: made.append(len(items)) or len(made))
    assert made == [len(one) for one in slices] == [2, 2, 1]


def test_kept_rows_side_by_side_are_one_slice(items):
    kept = KeptPictures("fingerprint", SIZE)
    kept.add(items[:4], "a")
    kept.add(items[4:], "b")
    work = kept_work(items, kept)
    assert work.take(6) == [Slice("a", 0, 4, 1, True), Slice("b", 0, 2, 1, True)]
    assert work.take(9) == [Slice("b", 2, 5, 1, True)]


@pytest.mark.usefixtures("ray_session")
def test_a_stage_keeps_each_picture_once_whatever_the_passes(items, monkeypatch):
    monkeypatch.setattr(works, "LETTERBOXED_BLOCK_BYTES", 2 * 64 * 32 * 3)
    kept = KeptPictures("fingerprint", SIZE)
    both = [*items, *(replace(item, pass_number=2) for item in items)]
    for expected in ([item.key for item in items], []):
        work = letterboxing_work(both, SIZE, 2, kept)
        assert work.count == 18
        found = sources(taken(work, 3))
        work.close()
        assert [one.key for one in found] == [item.key for item in both]
        assert decoded(found) == expected


@pytest.mark.usefixtures("ray_session")
def test_the_stage_s_rows_come_before_those_that_are_kept_and_the_keys_say_so(items):
    import ray

    kept = KeptPictures("fingerprint", SIZE)
    played(kept_work(items[2:5], kept))
    new = [*items[:2], *items[5:]]
    kept.rows = {id: replace(row, block=ray.put(row.block.table)) for id, row in kept.rows.items()}
    work = letterboxing_work(items, SIZE, 2, kept)
    found = sources(taken(work, 3))
    work.close()
    assert [one.key for one in found] == work.keys == [one.key for one in (*new, *items[2:5])]


def test_an_unfinished_chunk_of_a_block_that_is_there_leaves_what_was_kept(items):
    kept = KeptPictures("fingerprint", SIZE)
    kept.add(items, "a")
    work = kept_work(items, kept)
    work.settle(work.take(3), is_finished=False)
    assert len(kept.rows) == 9
    work.settle(work.take(3), is_finished=False, is_block_lost=True)
    assert kept.rows == {}


@pytest.mark.usefixtures("ray_session")
def test_an_error_of_the_stage_reaches_the_driver(items, monkeypatch):
    class Broken:
        def iter_internal_ref_bundles(self):
            raise UserError("no room")

    monkeypatch.setattr(works, "letterbox_stage", lambda *_: Broken())
    work = letterboxing_work(items, SIZE, least=1)
    with pytest.raises(UserError, match="no room"):
        taken(work, 3)
    work.close()


@given(
    width=st.integers(1, 100).map(lambda n: 32 * n),
    height=st.integers(1, 100).map(lambda n: 32 * n),
    least=st.integers(1, 300),
)
def test_blocks_are_whole_batches_of_a_bounded_size(width, height, least):
    rows = block_rows((width, height), least)
    assert rows % least == 0
    assert rows == least or rows * width * height * 3 <= works.LETTERBOXED_BLOCK_BYTES * 1.5


@pytest.mark.usefixtures("ray_session")
def test_a_store_too_small_for_two_blocks_says_what_it_has_and_needs(items, monkeypatch):
    monkeypatch.setattr(works, "store_bytes", lambda: 50_000_000)
    with pytest.raises(UserError, match=r"has 50 MB, two blocks of 33 .* need 127 MB.*=device"):
        letterboxing_work(items, (800, 800), least=1)


@pytest.mark.parametrize(("pictures", "free", "fits"), [(10, 400, True), (10, 100, False)])
def test_pictures_are_kept_unasked_only_where_they_fit(monkeypatch, pictures, free, fits):
    monkeypatch.setattr(works, "available_memory", lambda: free)
    monkeypatch.setattr(works, "store_bytes", lambda: 1000)
    assert works.fits_store(pictures, (2, 2)) is fits
    monkeypatch.setattr(works, "store_bytes", lambda: 100)
    assert not works.fits_store(pictures, (2, 2))

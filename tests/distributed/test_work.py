"""Rows of Ray Dataset blocks: taken in chunks, read back as work items or pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.distributed import work as works
from cfdist.distributed.work import (
    Slice,
    Work,
    block_rows,
    item_work,
    letterbox_block,
    letterboxing_work,
    materialise,
    sources_of,
)
from cfdist.errors import UserError
from cfdist.preprocess import read_into
from cfdist.widerface.manifest import WorkItem

SIZE = (64, 32)


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


def test_a_block_is_letterboxed_row_by_row(items):
    table = pa.Table.from_pylist([vars(item) for item in items])
    block = letterbox_block(table, SIZE)
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
    failed, used = sources_of([Slice(None, 0, 2)], [letterbox_block(table, SIZE)])
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


@pytest.mark.usefixtures("ray_session")
def test_kept_pictures_serve_any_part_and_any_pass(items, monkeypatch):
    monkeypatch.setattr(works, "LETTERBOXED_BLOCK_BYTES", 4 * 64 * 32 * 3)
    kept = materialise(items, "fingerprint", SIZE)
    assert kept.failed == 1
    some = [items[i] for i in (1, 2, 3, 7)]
    again = [WorkItem(item.id, item.path, item.size, 2) for item in some]
    work = kept.work([*some, *again])
    assert work.count == 8
    assert [one.key for one in sources(taken(work, 5))] == [one.key for one in (*some, *again)]


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
    with pytest.raises(UserError, match=r"has 50 MB, two blocks of 33 .* need 127 MB"):
        letterboxing_work(items, (800, 800), least=1)
    with pytest.raises(UserError, match=r"choose a smaller model.batch, preprocess.where=device"):
        materialise(items, "f", (800, 800))


@pytest.mark.parametrize(("pictures", "free", "fits"), [(10, 400, True), (10, 100, False)])
def test_pictures_are_kept_unasked_only_where_they_fit(monkeypatch, pictures, free, fits):
    monkeypatch.setattr(works, "available_memory", lambda: free)
    monkeypatch.setattr(works, "store_bytes", lambda: 1000)
    assert works.fits_store(pictures, (2, 2)) is fits
    monkeypatch.setattr(works, "store_bytes", lambda: 100)
    assert not works.fits_store(pictures, (2, 2))

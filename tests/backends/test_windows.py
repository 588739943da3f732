"""Windows cover what is seen, stay where they may be, and are not many more than needed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.backends import windows
from cfdist.backends.local_part import find_local_part
from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.windows import Placement, WindowGrid, filled, window_grid

GRID = WindowGrid((100, 90), size=8, before=2, after=1)


@st.composite
def intervals(draw, cells: int) -> tuple[int, int]:
    first = draw(st.integers(0, cells - 1))
    return first, draw(st.integers(first + 1, cells))


@st.composite
def grids_and_boxes(draw):
    size = draw(st.integers(2, 12))
    before, after = draw(st.integers(0, size)), draw(st.integers(0, size))
    least = before + size + after
    cells = draw(st.tuples(st.integers(least, 60), st.integers(least, 60)))
    grid = WindowGrid(cells, size, before, after)
    return grid, draw(intervals(cells[0])), draw(intervals(cells[1]))


@given(grids_and_boxes())
def test_windows_hold_every_wanted_cell_and_say_which_hold_one_again(case):
    grid, rows, columns = case
    held = np.zeros(grid.cells, bool)
    for placement in grid.cover(rows, columns):
        (top, bottom), (left, right) = grid.box(placement)
        assert placement.overlaps == held[top:bottom, left:right].any()
        held[top:bottom, left:right] = True
    assert held[slice(*rows), slice(*columns)].all()


@given(grids_and_boxes())
def test_windows_are_where_those_of_their_kind_may_be(case):
    grid, rows, columns = case
    placements = grid.cover(rows, columns)
    assert len({placement.kind == "columns" for placement in placements}) == 1
    for placement in placements:
        along = grid.cells[1 if placement.kind == "columns" else 0]
        if placement.kind in ("top", "bottom"):
            assert placement.first == grid.examples()[placement.kind].first
        else:
            assert grid.before <= placement.first <= along - grid.after - grid.size
    for kind, example in grid.examples().items():
        assert example.kind == kind
        (top, bottom), (left, right) = grid.box(example)
        assert 0 <= top < bottom <= grid.cells[0]
        assert 0 <= left < right <= grid.cells[1]


@given(grids_and_boxes())
def test_windows_are_one_run_without_gaps(case):
    grid, rows, columns = case
    firsts = sorted(placement.first for placement in grid.cover(rows, columns))
    assert all(b - a <= grid.size for a, b in pairwise(firsts))


def test_the_shorter_way_is_chosen():
    assert {each.kind for each in GRID.cover((20, 60), (0, 90))} == {"middle"}
    assert {each.kind for each in GRID.cover((0, 100), (20, 60))} == {"columns"}
    # Columns at the side would need windows of their own: rows will do.
    assert {each.kind for each in GRID.cover((0, 100), (1, 60))} == {"top", "middle", "bottom"}


def test_no_more_windows_than_needed():
    assert GRID.cover((10, 34), (0, 90)) == [Placement("middle", first) for first in (10, 18, 26)]
    # The last one begins earlier; its rows are computed twice.
    assert GRID.cover((10, 36), (0, 90))[-1] == Placement("middle", 28, overlaps=True)
    assert GRID.cover((0, 0), (0, 0)) == []


def test_the_networks_grid(spec):
    part = find_local_part(load_onnx(spec()).model)
    assert window_grid(part) == WindowGrid((100, 100), size=10, before=2, after=1)
    # A cell whose reach ends with the picture sees no padding, the next one does.
    assert 2 * 8 - part.reach.before >= 0 > 1 * 8 - part.reach.before
    assert 98 * 8 + part.reach.after < 800 <= 99 * 8 + part.reach.after


def test_a_small_input_has_no_windows(spec, monkeypatch):
    part = find_local_part(load_onnx(spec(height=160, width=160)).model)
    assert window_grid(part) is None
    monkeypatch.setattr(windows, "WINDOW_PIXELS", 32 * 160)
    assert window_grid(part) == WindowGrid((20, 20), size=4, before=2, after=1)


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.tuples(*[st.integers(0, 11)] * 2), max_size=3),
)
def test_filled_is_the_smallest_box_of_what_is_not_black(height, width, lit):
    picture = np.zeros((height, width, 3), np.uint8)
    for y, x in lit:
        picture[y % height, x % width, (y + x) % 3] = 1
    rows, columns = (np.flatnonzero(picture.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    if not len(rows):
        assert filled(picture) == ((0, 0), (0, 0))
    else:
        assert filled(picture) == ((rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1))


@pytest.mark.parametrize("part_of", [np.s_[:], np.s_[2:9]])
def test_filled_takes_a_row_of_a_batch(part_of):
    batch = np.zeros((3, 16, 24, 3), np.uint8)
    batch[1, 5:8, 3:7] = 9
    assert filled(batch[1][part_of]) == (
        (5 - (part_of.start or 0), 8 - (part_of.start or 0)),
        (3, 7),
    )

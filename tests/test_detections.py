"""Detections survive the border: Arrow and back."""

from __future__ import annotations

import doctest

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist import detections as detections_module
from cfdist.detections import Detections, as_table, from_arrow, packed, to_arrow


@st.composite
def detections(draw) -> Detections:
    count = draw(st.integers(0, 4))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    return Detections(
        draw(st.text(max_size=8)),
        random.normal(size=(count, 4)).astype(np.float32),
        random.random(count).astype(np.float32),
        random.normal(size=(count, 5, 2)).astype(np.float32),
        draw(st.integers(0, 2**31 - 1)),
        draw(st.integers(0, 2**31 - 1)),
        draw(st.none() | st.text(max_size=5)),
        draw(st.none() | st.text(max_size=5)),
    )


@settings(deadline=None)
@given(st.lists(detections(), max_size=4), st.lists(detections(), max_size=3))
def test_arrow_round_trip(first, second):
    table = pa.concat_tables([to_arrow(first), to_arrow(second)])
    assert as_table(packed(table)) == table
    read = from_arrow(table)
    assert len(read) == len(first) + len(second)
    for there, back in zip([*first, *second], read, strict=True):
        for name in ("id", "width", "height", "error", "damage"):
            assert getattr(there, name) == getattr(back, name)
        for name in ("boxes", "scores", "landmarks"):
            np.testing.assert_array_equal(getattr(there, name), getattr(back, name))
            assert getattr(back, name).dtype == np.float32


def test_a_slice_of_a_table_reads_its_own_rows():
    rows = [Detections(str(i), scores=np.full(i, i, np.float32)) for i in range(4)]
    read = from_arrow(to_arrow(rows).slice(2, 2))
    assert [r.id for r in read] == ["2", "3"]
    assert [r.scores.tolist() for r in read] == [[2, 2], [3, 3, 3]]


def test_the_examples_of_the_docstrings():
    result = doctest.testmod(detections_module)
    assert result.attempted > 0
    assert result.failed == 0

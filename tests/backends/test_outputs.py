"""Which outputs of a model file count, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.backends.outputs import as_result, output_order, output_shapes
from cfdist.decode import HeadMaps, Peaks
from cfdist.errors import UserError

NAMES = ("output1", "output2", "output3", "output4")
PEAKS = ["scores", "cells", "values"]


@given(st.permutations(range(4)), st.sampled_from(["", "Conv_7:0:", "a:1:"]))
def test_names_decide_the_order(spec, order, prefix):
    found = output_order([prefix + NAMES[i] for i in order], spec(outputs=NAMES))
    assert [order[i] for i in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("names", [("", "", "", ""), ("p", "q", "r", "s")])
@pytest.mark.parametrize("outputs", [None, NAMES])
def test_without_names_the_order_counts(spec, names, outputs):
    assert output_order(names, spec(outputs=outputs)) == (0, 1, 2, 3)


def test_part_of_a_name_is_no_name(spec):
    names = ("a:0:xoutput4", "b:0:xoutput3", "c:0:xoutput2", "d:0:xoutput1")
    assert output_order(names, spec(outputs=NAMES)) == (0, 1, 2, 3)


def test_a_graph_s_own_peaks_are_known_by_name(spec):
    assert output_order([f"n:0:{name}" for name in PEAKS[::-1]], spec()) == (2, 1, 0)
    assert output_shapes(3, spec(top_k=20)) == [(20,), (20,), (20, 14)]


@pytest.mark.parametrize(
    ("names", "outputs", "message"),
    [
        ([*NAMES, "output5"], None, "'output5', expected four: heat map, size, offset, landmarks"),
        (PEAKS[:2], None, "'scores', 'cells', expected four"),
        ([], NAMES, "none, expected four"),
        (NAMES, ("output1", "a", "output3", "b"), "expected 'output1', .*; missing 'a', 'b'"),
    ],
)
def test_missing_outputs_are_named(spec, names, outputs, message):
    with pytest.raises(UserError, match=message):
        output_order(names, spec(outputs=outputs))


@pytest.mark.parametrize("names", [("p", "q", "r", "s"), NAMES[1:], PEAKS])
def test_names_that_the_file_must_have_are_not_replaced_by_its_order(spec, names):
    with pytest.raises(UserError, match=r"expected 'output1', .*; missing 'output1'"):
        output_order(names, spec(outputs=NAMES, needs_outputs=True))
    assert output_order(NAMES[::-1], spec(outputs=NAMES, needs_outputs=True)) == (3, 2, 1, 0)


def test_four_arrays_are_head_maps_and_three_are_peaks(spec):
    model = spec(height=64, width=96, top_k=5)
    shapes = output_shapes(4, model)
    assert shapes == [(1, 16, 24), (2, 16, 24), (2, 16, 24), (10, 16, 24)]
    heads = as_result([np.zeros((2, *shape), np.float32) for shape in shapes])
    assert isinstance(heads, HeadMaps)
    assert heads.landmarks.shape == (2, 10, 16, 24)
    peaks = as_result([np.ones((2, *shape), np.float32) for shape in output_shapes(3, model)])
    assert isinstance(peaks, Peaks)
    assert (peaks.cell.dtype, peaks.values.shape) == (np.int32, (2, 5, 14))


@pytest.mark.parametrize("change", [{"top_k": None}, {"peaks": "threshold"}, {"size": "own"}])
def test_a_graph_that_picks_peaks_is_refused_where_others_are_wanted(spec, change):
    assert output_shapes(3, spec()) == [(200,), (200,), (200, 14)]
    with pytest.raises(UserError, match="give a model that puts out head maps"):
        output_shapes(3, spec(**change))

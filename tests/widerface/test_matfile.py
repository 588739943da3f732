"""The MATLAB 5 reader against scipy's, and what damage does to it."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.io import loadmat, savemat

from cfdist.widerface import matfile
from cfdist.widerface.ground_truth import GROUND_TRUTH_FILES
from cfdist.widerface.matfile import MAX_DEPTH, MatError, read_variables

NUMBERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def saved(compressed: bool = False, **variables) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


def cell(*items) -> np.ndarray:
    column = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        column[row, 0] = item
    return column


def assert_same(ours, theirs) -> None:
    assert ours.shape == theirs.shape
    if theirs.dtype == object:
        for a, b in zip(ours.ravel(), theirs.ravel(), strict=True):
            assert_same(a, b)
    else:
        np.testing.assert_array_equal(ours, theirs)


matrices = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=2, max_side=4))
)
texts = st.text(st.characters(max_codepoint=0xD7FF), min_size=1, max_size=6).map(np.array)
cells = st.recursive(
    matrices | texts, lambda inner: st.lists(inner, max_size=3).map(lambda items: cell(*items)),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150)
@given(cells, st.booleans())
def test_what_scipy_writes_is_read_as_scipy_reads_it(value, compressed):
    content = saved(compressed, x=value, other=np.ones((1, 2)))
    found = read_variables(content, ["x"])
    assert list(found) == ["x"]
    assert_same(found["x"], loadmat(io.BytesIO(content))["x"])


@pytest.mark.slow
def test_the_benchmark_s_own_files_are_read_as_scipy_reads_them(shared):
    names = ("event_list", "file_list", "face_bbx_list", "gt_list")
    for file in GROUND_TRUTH_FILES:
        path = shared / "data" / "wider_val_mini" / "ground_truth" / file
        found, expected = read_variables(path.read_bytes(), names), loadmat(path)
        assert set(found) == set(names) & set(expected)
        for name, value in found.items():
            assert_same(value, expected[name])


def test_variables_of_other_classes_do_not_disturb():
    content = saved(x=np.eye(2), other={"a": 1}, another=np.array([[1j]]), three=np.ones((2, 2)))
    np.testing.assert_array_equal(read_variables(content, ["x"])["x"], np.eye(2))
    for name, value in {"a": {"b": 1}, "c": np.array([[1j]]), "t": np.array(["ab", "cd"])}.items():
        with pytest.raises(MatError):
            read_variables(saved(**{name: value}), [name])
    assert read_variables(saved(x=np.eye(2)), ["y"]) == {}


def test_a_big_endian_file():
    head = struct.pack(">IIIIIIii", 6, 8, 11, 0, 5, 8, 1, 2)  # class uint16, one row, two columns
    body = head + struct.pack(">II", 0x10001, 0x78000000) + struct.pack(">HHHH", 4, 4, 7, 513)
    content = bytes(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(body)) + body
    np.testing.assert_array_equal(read_variables(content, ["x"])["x"], [[7, 513]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no header of MATLAB 5"),
        (b"<html>404</html>", "no header"),
        (bytes(124) + b"\x00\x02IM", "MATLAB 7.3; save it with -v7"),
        (bytes(124) + b"\x00\x01IM" + b"\0" * 7, "cut short"),
        (bytes(124) + b"\x00\x01IM" + struct.pack("<II", 15, 4) + b"abcd", "damaged"),
        (bytes(124) + b"\x00\x01IM" + struct.pack("<II", 14, 1 << 31), "wrong length"),
        (bytes(124) + b"\x00\x01IM" + struct.pack("<II", 5, 0), "no matrix"),
    ],
)
def test_what_is_no_such_file(content, reason):
    with pytest.raises(MatError, match=reason):
        read_variables(content, ["x"])


def test_every_cut_and_every_flip_of_compressed_data_is_found():
    content = saved(True, x=cell(np.arange(40), "text", np.eye(3)))
    for stop in range(129, len(content)):
        with pytest.raises(MatError):
            read_variables(content[:stop], ["x"])
    for at in range(136, len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(MatError):
            read_variables(bytes(damaged), ["x"])


def test_a_variable_that_inflates_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(matfile, "MAX_VARIABLE_BYTES", 1000)
    data = zlib.compress(bytes(100_000))
    content = bytes(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(data)) + data
    with pytest.raises(MatError, match="do not end where they should"):
        read_variables(content, ["x"])


def test_cells_in_cells_have_a_limit():
    value = np.eye(2)
    for _ in range(MAX_DEPTH):
        value = cell(value)
    assert read_variables(saved(x=value), ["x"])["x"].shape == (1, 1)
    with pytest.raises(MatError, match="deep"):
        read_variables(saved(x=cell(value)), ["x"])


def test_what_is_not_compressed_has_the_same_limit(monkeypatch):
    monkeypatch.setattr(matfile, "MAX_VARIABLE_BYTES", 1000)
    with pytest.raises(MatError, match="a variable of"):
        read_variables(saved(False, x=np.zeros(2000)), ["x"])


@pytest.mark.slow
def test_the_largest_variable_of_empty_cells_takes_little_memory(monkeypatch):
    # What is measured is a ratio; a thirtieth of the limit shows it as well.
    monkeypatch.setattr(matfile, "MAX_VARIABLE_BYTES", 1_000_000)
    count = (matfile.MAX_VARIABLE_BYTES - 1000) // 8
    cells = struct.pack("<II", 14, 0) * count
    head = struct.pack("<IIIIIIii", 6, 8, 1, 0, 5, 8, 1, count) + struct.pack("<HH4s", 1, 1, b"x")
    matrix = head + cells
    content = bytes(124) + b"\x00\x01IM" + struct.pack("<II", 14, len(matrix)) + matrix
    tracemalloc.start()
    try:
        assert read_variables(content, ["x"])["x"].shape == (1, count)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content)
    finally:
        tracemalloc.stop()

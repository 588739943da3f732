"""The MATLAB 5 format as far as WIDER FACE uses it: cells, text and numbers in named variables.

`scipy.io.loadmat` reads more of the format, and ends the process on some damaged files. This reader
checks every length before it uses it. Source of the format: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 128  # text, then the version and the byte order
_VERSION_AT = 124
_VERSION = 0x0100
_VERSION_HDF5 = 0x0200  # MATLAB 7.3: another format
_ORDERS = {b"IM": "<", b"MI": ">"}

# Kinds of elements.
_INT32, _UINT32, _MATRIX, _COMPRESSED = 5, 6, 14, 15
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"
}  # fmt: skip
# Text in the 16 bits of old files is UTF-16 without surrogates.
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_SUFFIXES = {"<": "-le", ">": "-be"}
_TAGS = {order: struct.Struct(order + "II") for order in "<>"}
# Of a matrix of two dimensions: the tag of the flags, the flags, the tag of the dimensions, these.
_HEADS = {order: struct.Struct(order + "IIIIIIii") for order in "<>"}
_HEAD_BYTES = 32

# Classes of matrices.
_CELL, _CHAR = 1, 4
_NUMERIC = range(6, 16)
_IS_COMPLEX = 0x0800

MAX_VARIABLE_BYTES = 1 << 25  # of one variable, inflated; WIDER FACE's have less than 4 MB
MAX_DEPTH = 8  # of cells in cells; WIDER FACE has two


# One for all empty matrices: in a file each takes 8 bytes, as an array of its own over 100.
_EMPTY = np.zeros((0, 0))


class MatError(ValueError):
    """A content that is not that of a whole MATLAB 5 file; the message says why."""


class _Element(NamedTuple):
    """A part of a file: its kind, where its data start and stop, and where the next one is."""

    kind: int
    start: int
    stop: int
    next: int


class _Head(NamedTuple):
    """What a matrix begins with; its class is the lowest 8 bits of the flags."""

    flags: int
    shape: tuple[int, int]
    name: _Element


def read_variables(content: bytes, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Variables of a MATLAB 5 file.

    A cell array becomes an array of objects, a text an array of one string, numbers an array in the
    type that they are stored in.

    Args:
        content: The whole file. Each compressed variable is read to its end, where a checksum is.
        names: The variables wanted; others may be of any class.

    Raises:
        MatError: no MATLAB 5 file, damaged or cut short, or a wanted variable is of another class.
    """
    version_and_order = content[_VERSION_AT:_HEADER_BYTES]
    order = _ORDERS.get(version_and_order[2:])
    if order is None:
        raise MatError("it has no header of MATLAB 5")
    (version,) = struct.unpack(f"{order}H", version_and_order[:2])
    if version != _VERSION:
        newer = ", of MATLAB 7.3; save it with -v7" if version == _VERSION_HDF5 else ""
        raise MatError(f"format version {version:#06x}{newer}")
    found: dict[str, NDArray[Any]] = {}
    for data in _variables(content, order):
        if len(data) > MAX_VARIABLE_BYTES:
            raise MatError(f"a variable of {len(data)} bytes")
        file = _File(data, order)
        matrix = file.element(0, len(data))
        if matrix.kind != _MATRIX or matrix.next < len(data):
            raise MatError("a variable is no matrix")
        name = file.name(matrix)
        if name in found:
            raise MatError(f"two variables are called {name}")
        if name in names:
            found[name] = file.value(matrix, 0)
    return found


def _variables(content: bytes, order: str) -> Iterator[bytes]:
    """The element of each variable, inflated."""
    file, at = _File(content, order), _HEADER_BYTES
    while at < len(content):
        element = file.element(at, len(content))
        if element.kind == _COMPRESSED:
            at = element.stop  # without padding
            yield _inflate(content[element.start : element.stop])
        else:
            yield content[at : element.next]
            at = element.next


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, MAX_VARIABLE_BYTES)
    except zlib.error as error:
        raise MatError(f"compressed data are damaged ({error})") from None
    if not inflater.eof or inflater.unused_data:
        raise MatError("compressed data do not end where they should")
    return inflated


@dataclass(frozen=True)
class _File:
    """Elements in a content; `order` is "<" (little-endian) or ">"."""

    data: bytes
    order: str

    def element(self, at: int, stop: int) -> _Element:
        """The element at a place; all of it lies before `stop`."""
        if at + 8 > stop:
            raise MatError("cut short")
        kind, size = _TAGS[self.order].unpack_from(self.data, at)
        if kind >> 16:  # at most four bytes of data, inside the tag
            kind, size, start, following = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise MatError(f"an element of {size} bytes in a place for 4")
        else:
            start = at + 8
            following = start + size + -size % 8
        if start + size > stop:
            raise MatError("cut short, or a wrong length")
        return _Element(kind, start, start + size, min(following, stop))

    def head(self, matrix: _Element) -> _Head:
        """What a matrix of rows and columns begins with."""
        if matrix.stop - matrix.start < _HEAD_BYTES:
            raise MatError("a matrix without flags or dimensions")
        found = _HEADS[self.order].unpack_from(self.data, matrix.start)
        flags_kind, flags_size, flags, _, shape_kind, shape_size, *shape = found
        is_right = (flags_kind, flags_size, shape_kind, shape_size) == (_UINT32, 8, _INT32, 8)
        if not is_right or min(shape) < 0:
            raise MatError("a matrix without flags, or not of rows and columns")
        return _Head(
            flags, (shape[0], shape[1]), self.element(matrix.start + _HEAD_BYTES, matrix.stop)
        )

    def name(self, matrix: _Element) -> str:
        """The name of a variable."""
        name = self.head(matrix).name
        return self.data[name.start : name.stop].decode("latin-1")

    def value(self, matrix: _Element, depth: int) -> NDArray[Any]:
        """The array in a matrix that is inside of `depth` cells."""
        if matrix.start == matrix.stop:
            return _EMPTY
        flags, shape, name = self.head(matrix)
        kind = flags & 0xFF
        if kind == _CELL:
            return self._cell(name.next, matrix.stop, shape, depth)
        if (kind != _CHAR and kind not in _NUMERIC) or flags & _IS_COMPLEX:
            raise MatError(f"neither cells, text nor real numbers (class {kind})")
        data = self.element(name.next, matrix.stop)
        if data.next < matrix.stop:
            raise MatError("a matrix longer than its data")
        return self._text(data, shape) if kind == _CHAR else self._numbers(data, shape)

    def _cell(self, at: int, stop: int, shape: tuple[int, int], depth: int) -> NDArray[Any]:
        count = shape[0] * shape[1]
        if depth == MAX_DEPTH:
            raise MatError(f"cells in cells, more than {MAX_DEPTH} deep")
        if count * 8 > stop - at:
            raise MatError(f"{count} cells in {stop - at} bytes")
        cells = np.empty(count, object)
        for index in range(count):
            element = self.element(at, stop)
            if element.kind != _MATRIX:
                raise MatError(f"a cell holds no matrix (kind {element.kind})")
            cells[index] = self.value(element, depth + 1)
            at = element.next
        if at < stop:
            raise MatError("more cells than the dimensions say")
        return cells.reshape(shape, order="F")

    def _text(self, data: _Element, shape: tuple[int, int]) -> NDArray[Any]:
        encoding = _ENCODINGS.get(data.kind)
        if encoding is None:
            raise MatError(f"text of kind {data.kind}")
        if encoding in ("utf-16", "utf-32"):
            encoding += _SUFFIXES[self.order]
        try:
            text = self.data[data.start : data.stop].decode(encoding)
        except UnicodeDecodeError as error:
            raise MatError(f"text cannot be decoded ({error.reason})") from None
        if len(text) != shape[0] * shape[1]:
            raise MatError(f"text of {len(text)} characters, expected {shape[0]} x {shape[1]}")
        if text and shape[0] != 1:
            raise MatError(f"text of {shape[0]} rows, expected one")
        return np.array([text] if text else [], str)

    def _numbers(self, data: _Element, shape: tuple[int, int]) -> NDArray[Any]:
        stored = _NUMBERS.get(data.kind)
        if stored is None:
            raise MatError(f"numbers of kind {data.kind}")
        dtype, count = np.dtype(self.order + stored), shape[0] * shape[1]
        if count * dtype.itemsize != data.stop - data.start:
            raise MatError(f"{count} numbers in {data.stop - data.start} bytes")
        return np.ndarray(shape, dtype, self.data, data.start, order="F")

"""How much a device is given at once, and what it is called."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cfdist.devices.base import MAX_CHUNK, device_name, largest_chunk


@given(least=st.integers(1, 4096))
def test_the_largest_chunk_is_whole_batches(least):
    largest = largest_chunk(least)
    assert largest % least == 0
    assert largest == least or largest <= MAX_CHUNK < largest + least


def test_devices_are_named_by_their_number():
    assert device_name(3) == "device:3"

"""Names, sizes and contents of the files around ais_bench."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from cfdist.decode import HeadMaps
from cfdist.errors import UserError
from cfdist.workflow.files import (
    FORMS,
    check_space,
    input_bytes,
    input_contract,
    output_names,
    output_shapes,
    partial_folder,
    read_output,
    read_raw_into,
    refuse_existing,
    write_raw,
)


@pytest.fixture
def small(spec):
    """A model of 32 x 64 pixels: maps of 8 x 16 cells."""
    return spec(height=32, width=64)


def test_sizes_are_the_published_ones(spec):
    model = spec()
    assert input_bytes(input_contract(model, "f32")) == 7_680_000
    assert input_bytes(input_contract(model, "u8")) == 1_920_000
    sizes = [4 * int(np.prod(shape)) for shape in output_shapes(model)]
    assert sizes == [160_000, 320_000, 320_000, 1_600_000]


@pytest.mark.parametrize("form", FORMS.values())
def test_an_input_tensor_is_raw_little_endian_in_c_order(tmp_path, small, form):
    contract = input_contract(small, form)
    values = np.random.default_rng(1).integers(0, 256, contract.shape(1)[1:])
    array = np.asfortranarray(values.astype(contract.dtype))
    write_raw(tmp_path / "a.bin", array)
    content = (tmp_path / "a.bin").read_bytes()
    assert content == np.ascontiguousarray(array, {"f32": "<f4", "u8": "u1"}[form]).tobytes()
    assert len(content) == input_bytes(contract)

    row = np.empty(contract.shape(1)[1:], contract.dtype)
    read_raw_into(tmp_path / "a.bin", row)
    np.testing.assert_array_equal(row, array)
    for wrong in (content[:-1], content + b"\0"):
        (tmp_path / "a.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{len(wrong)} bytes, expected {len(content)}"):
            read_raw_into(tmp_path / "a.bin", row)


def test_what_the_disk_does_not_take_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none/a\.bin: cannot be written \(No such file"):
        write_raw(tmp_path / "none" / "a.bin", np.zeros(3, np.float32))


def test_folders_that_hold_something_are_refused(tmp_path):
    refuse_existing(tmp_path / "new", "infer.output")
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty", "infer.output")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for name in ("full", "full/a"):
        with pytest.raises(UserError, match=f"infer.output=.*{name}: is there already"):
            refuse_existing(tmp_path / name, "infer.output")


def test_a_full_disk_is_seen_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    check_space(tmp_path / "a" / "b", 2_000_000_000, "preprocess.output")
    with pytest.raises(UserError, match=r"needs 24\.8 GB, 3\.0 GB are free"):
        check_space(tmp_path / "a" / "b", 3226 * 7_680_000, "preprocess.output")


def test_raw_outputs_are_read_as_they_were_written(tmp_path, small):
    random = np.random.default_rng(1)
    maps = HeadMaps(
        *(random.normal(size=(2, c, 8, 16)).astype(np.float32) for c in HeadMaps.CHANNELS)
    )
    for i, stem in enumerate("ab"):
        paths = [tmp_path / name for name in output_names(stem)]
        for path, name in zip(paths, ("hm", "wh", "offset", "landmarks"), strict=True):
            write_raw(path, getattr(maps, name)[i])
        read = read_output(paths, small)
        for name in ("hm", "wh", "offset", "landmarks"):
            array = getattr(read, name)
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, getattr(maps, name)[i : i + 1])


def test_a_folder_that_is_not_renamed_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), partial_folder(tmp_path / "a") as partial:
        (partial / "file").touch()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "of a run that was killed").touch()
    with partial_folder(tmp_path / "a") as partial:
        (partial / "file").touch()
        partial.rename(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file"]

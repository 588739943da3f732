"""The files around ais_bench: contents, records, and which file belongs to which picture."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.decode import HeadMaps
from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import (
    FORMS,
    _list_inputs,
    check_space,
    find_inputs,
    find_outputs,
    found_names,
    ids_by_stem,
    input_bytes,
    input_contract,
    input_record,
    match_outputs,
    output_names,
    output_shapes,
    partial_folder,
    read_output,
    read_raw_into,
    refuse_existing,
    without_input,
    write_raw,
)

# As WIDER FACE has them: digits and underscores at the end, dashes, no dot.
stems = st.text("ab_-0123", min_size=1, max_size=12)


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


def write_picture_output(folder: Path, stem: str) -> None:
    """Files of the right sizes for a model of 32 x 64 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, cells in zip(output_names(stem), (1, 2, 2, 10), strict=True):
        (folder / name).write_bytes(bytes(cells * 8 * 16 * 4))


@given(st.sets(stems, min_size=1, max_size=8))
def test_raw_outputs_are_found_by_name_whatever_the_names(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("outputs")
    for name in names:
        for file in output_names(name):
            (folder / file).touch()
    found = find_outputs(folder, "postprocess.input")
    assert found.keys() == {file for name in names for file in output_names(name)}
    assert all(path == folder / name for name, path in found.items())


def test_raw_outputs_are_found_in_event_and_device_folders(tmp_path):
    for name in ("0--Parade/a_0.bin", "0--Parade/a_3.bin", "device0_0/b_1.bin", "c_2.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for other in ("c_4.bin", "c.bin", "c_1.txt", "_1.bin"):
        (tmp_path / other).touch()
    found = find_outputs(tmp_path, "postprocess.input")
    assert {name: path.parent.name for name, path in found.items()} == {
        "a_0.bin": "0--Parade",
        "a_3.bin": "0--Parade",
        "b_1.bin": "device0_0",
        "c_2.bin": tmp_path.name,
        "c_4.bin": tmp_path.name,
    }


def test_one_output_in_two_folders_is_refused(tmp_path):
    for folder in ("flat", "sorted"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a_0.bin").touch()
    with pytest.raises(UserError, match=r"a_0\.bin is in both .*flat and .*sorted"):
        find_outputs(tmp_path, "postprocess.input")
    with pytest.raises(UserError, match=r"postprocess\.input=.*no such folder"):
        find_outputs(tmp_path / "none", "postprocess.input")


def test_pictures_whose_files_would_share_a_name_are_refused():
    assert ids_by_stem(["0--A/x_1", "1--B/y"]) == {"x_1": "0--A/x_1", "y": "1--B/y"}
    with pytest.raises(UserError, match=r"0--A/x and 1--B/x: .* same name x\.bin"):
        ids_by_stem(["0--A/x", "1--B/x"])
    with pytest.raises(UserError, match=r"0--A/x\.y: its name holds a dot"):
        ids_by_stem(["0--A/x.y"])


def test_input_tensors_whose_outputs_would_share_a_name_are_refused(tmp_path, small):
    size = input_bytes(input_contract(small, "u8"))
    for name in ("b.bin", "a.bin", "c.txt"):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "short.bin").touch()
    found = find_inputs(tmp_path, small, "infer.input")
    assert found.contract == input_contract(small, "u8")
    assert [item.id for item in found.items] == ["a", "b"]
    assert [stem for stem, _ in found.failures] == ["short"]
    (tmp_path / "a.1.bin").touch()
    with pytest.raises(UserError, match=r"outputs of a\.1\.bin and a\.bin .*a_0\.bin"):
        find_inputs(tmp_path, small, "infer.input")


def test_pictures_without_a_whole_input_tensor_are_missing(tmp_path, small):
    contract = input_contract(small, "u8")
    (tmp_path / "a.bin").write_bytes(bytes(input_bytes(contract)))
    (tmp_path / "b.bin").write_bytes(b"half")
    items = [WorkItem(f"0--E/{name}", f"{name}.jpg", 1) for name in "abc"]
    assert without_input(items, tmp_path, contract) == items[1:]


def test_the_form_of_a_folder_is_that_of_most_files(tmp_path, small):
    f32, u8 = (input_bytes(input_contract(small, form)) for form in FORMS.values())

    def form(*sizes: int) -> str:
        for name, size in zip("abc", sizes, strict=True):
            (tmp_path / f"{name}.bin").write_bytes(bytes(size))
        return FORMS[find_inputs(tmp_path, small, "k").contract.dtype]

    assert form(u8, u8, u8) == "u8"
    assert form(f32, 7, f32) == "f32"
    wanted = rf"a\.bin has 7 bytes, expected {f32} \(f32\) or {u8} \(u8\)"
    with pytest.raises(UserError, match=wanted):
        form(7, 7, 7)


def test_pictures_are_paired_with_files_by_name(tmp_path, small):
    write_picture_output(tmp_path / "x", "b")
    write_picture_output(tmp_path / "y", "a")
    write_picture_output(tmp_path, "stranger")
    write_picture_output(tmp_path, "cut")
    (tmp_path / "cut_1.bin").unlink()
    write_picture_output(tmp_path, "half")
    (tmp_path / "half_3.bin").write_bytes(b"\0" * (10 * 8 * 16 * 2))
    items = [
        WorkItem(f"0--E/{name}", f"{name}.jpg", 1) for name in ("a", "absent", "b", "cut", "half")
    ]
    usable, failures = match_outputs(find_outputs(tmp_path, "k"), items, small, "k=x", "do y")
    assert [(d.id, d.picture, [Path(f).name for f in d.files]) for d in usable] == [
        ("0--E/a", "a.jpg", list(output_names("a"))),
        ("0--E/b", "b.jpg", list(output_names("b"))),
    ]
    reasons = dict(failures)
    assert reasons.keys() == {"0--E/absent", "0--E/cut", "0--E/half"}
    assert "no output files absent_*.bin" in reasons["0--E/absent"]
    assert "cut_1.bin is missing; run job=infer again" in reasons["0--E/cut"]
    assert "half_3.bin has 2560 bytes, expected 5120" in reasons["0--E/half"]
    assert "float16" in reasons["0--E/half"]
    expected = r"k=x: none of the 1 pictures .* \(19 of any names found\); .*cut_1.bin .*; do y"
    with pytest.raises(UserError, match=expected):
        match_outputs(find_outputs(tmp_path, "k"), items[3:4], small, "k=x", "do y")
    expected = r"the first: .*half_3\.bin has 2560 bytes"
    with pytest.raises(UserError, match=expected):
        match_outputs(find_outputs(tmp_path, "k"), [items[1], items[4]], small, "k=x", "do y")


def save(path: Path, maps: np.ndarray) -> None:
    """Write one output as the file's suffix says."""
    match path.suffix:
        case ".npy":
            np.save(path, maps)
        case ".txt":
            np.savetxt(path, maps.reshape(-1, maps.shape[-1]))
        case _:
            maps.tofile(path)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("suffix", [".bin", ".npy", ".txt"])
def test_outputs_of_other_programs_are_read(tmp_path, small, suffix, first):
    random = np.random.default_rng(3)
    maps = [random.normal(size=(1, *shape)).astype(np.float32) for shape in output_shapes(small)]
    folder = tmp_path / "0--Parade"
    folder.mkdir()
    for number, array in enumerate(maps, first):
        save(folder / f"a_1_{number}{suffix}", array)
    items = [WorkItem("0--Parade/a_1", "a_1.jpg", 1)]
    (found,), failures = match_outputs(find_outputs(tmp_path, "k"), items, small, "k=x", "do y")
    assert failures == []
    for read, array in zip(read_output(found.files, small), maps, strict=True):
        np.testing.assert_allclose(read, array, rtol=1e-6)


@given(present=st.sets(st.integers(0, 5)))
def test_numbers_from_one_need_a_fourth_and_no_zeroth(present):
    found = {f"a_{k}.bin": Path() for k in present}
    names = found_names(found, "a")
    if not present & {0, 1, 2, 3, 4}:
        assert names is None
    elif 0 in present or 4 not in present:
        assert names == output_names("a")
    else:
        assert names == tuple(f"a_{k}.bin" for k in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("suffix", "wrong"),
    [
        (".npy", np.zeros((1, 2, 8, 16), np.float32)),  # twice the numbers
        (".npy", np.zeros((1, 1, 16, 8), np.float32)),  # rows for columns
        (".npy", np.zeros((1, 1, 8, 16), np.int32)),
        (".txt", np.zeros((8, 15), np.float32)),
    ],
)
def test_other_numbers_than_a_head_s_are_refused(tmp_path, small, suffix, wrong):
    paths = [tmp_path / f"a_{k}{suffix}" for k in range(4)]
    for path, shape in zip(paths, output_shapes(small), strict=True):
        save(path, np.zeros(shape, np.float32))
    read_output(paths, small)
    save(paths[0], wrong)
    with pytest.raises(ValueError, match=r"a_0\.\w+ holds .*expected floats of \[1, 1, 8, 16\]"):
        read_output(paths, small)
    for content in (b"", b"PK\3\4", b"no numbers"):
        paths[0].write_bytes(content)
        with pytest.raises(ValueError):
            read_output(paths, small)


def test_what_a_file_claims_takes_no_memory(tmp_path, small):
    paths = [tmp_path / f"a_{k}.npy" for k in range(4)]
    for path, shape in zip(paths, output_shapes(small), strict=True):
        save(path, np.zeros(shape, np.float32))
    claim = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    with paths[0].open("wb") as file:
        np.lib.format.write_array_header_1_0(file, claim)
    with pytest.raises(ValueError):
        read_output(paths, small)
    paths[0].unlink()
    np.save(paths[0], np.array([{}], object))
    with pytest.raises(ValueError, match="Python objects"):
        read_output(paths, small)
    paths[0] = tmp_path / "a_0.txt"
    paths[0].touch()
    os.truncate(paths[0], 1 << 40)
    with pytest.raises(ValueError, match="more text than 128 numbers take"):
        read_output(paths, small)


def test_a_record_refuses_other_settings(tmp_path, spec, small):
    folder = tmp_path / "bins"
    record = input_record(folder, input_contract(small, "f32"), 3, "abc")
    keys = ("input", "height", "width", "color", "scale", "mean", "std")
    assert record.check(keys, "infer.input") is None

    record.write()
    assert (tmp_path / "bins_preprocess.json").is_file()
    there = record.check(keys, "infer.input")
    assert (there["pictures"], there["fingerprint"]) == (3, "abc")

    other = spec(height=64, width=64, mean=(0.1, 0.2, 0.3))
    expected = input_record(folder, input_contract(other, "f32"))
    with pytest.raises(UserError) as refusal:
        expected.check(keys, "infer.input")
    message = str(refusal.value)
    assert "infer.input=" in message
    assert "height 32, this run has 64" in message
    assert "mean [0.0, 0.0, 0.0], this run has [0.1, 0.2, 0.3]" in message
    assert "width" not in message


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"input": "f32"}', "\x00"])
def test_what_is_no_record_is_refused(tmp_path, small, content):
    record = input_record(tmp_path / "bins", input_contract(small, "f32"))
    (tmp_path / "bins_preprocess.json").write_text(content)
    with pytest.raises(UserError, match=r"bins_preprocess\.json: not the record"):
        record.check(("height",), "infer.input")


@pytest.mark.parametrize("find", [_list_inputs, find_outputs])
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, find):
    (tmp_path / "event").mkdir()

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        find(tmp_path, "key")

"""Names, sizes, contents and records of the files around ais_bench."""

from __future__ import annotations

import json
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

# As WIDER FACE has them: digits and underscores at the end, dashes, no dot.
stems = st.text("ab_-0123", min_size=1, max_size=12)


def heads(pictures: int, rows: int = 2, columns: int = 3) -> HeadMaps:
    random = np.random.default_rng(pictures)
    return HeadMaps(
        *(
            random.normal(size=(pictures, channels, rows, columns)).astype(np.float32)
            for channels in HeadMaps.CHANNELS
        )
    )


@pytest.fixture
def small(spec):
    """A model of 32 x 64 pixels: maps of 8 x 16 cells."""
    return spec(height=32, width=64)


def write_picture_dump(folder: Path, stem: str, maps: HeadMaps, index: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dumps.write_dump(folder, stem, maps, index)


@given(st.sets(stems, min_size=1, max_size=8))
def test_dumps_are_found_by_name_whatever_the_names(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("dumps")
    for name in names:
        for file in dumps.dump_names(name):
            (folder / file).touch()
    found = dumps.find_dumps(folder, "postprocess.input")
    assert found.keys() == names
    for name, files in found.items():
        assert [files[k].name for k in range(4)] == list(dumps.dump_names(name))


def test_dumps_are_found_in_event_and_device_folders(tmp_path):
    for name in ("0--Parade/a_0.bin", "0--Parade/a_3.bin", "device0_0/b_1.bin", "c_2.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for other in ("c_4.bin", "c.bin", "c_1.txt", "_1.bin"):
        (tmp_path / other).touch()
    found = dumps.find_dumps(tmp_path, "postprocess.input")
    assert {stem: sorted(files) for stem, files in found.items()} == {
        "a": [0, 3],
        "b": [1],
        "c": [2],
    }


def test_one_output_in_two_folders_is_refused(tmp_path):
    for folder in ("flat", "sorted"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a_0.bin").touch()
    with pytest.raises(UserError, match=r"a_0\.bin is in both .*flat and .*sorted"):
        dumps.find_dumps(tmp_path, "postprocess.input")
    with pytest.raises(UserError, match=r"postprocess\.input=.*no such folder"):
        dumps.find_dumps(tmp_path / "none", "postprocess.input")


def test_pictures_whose_files_would_share_a_name_are_refused():
    assert dumps.ids_by_stem(["0--A/x_1", "1--B/y"]) == {"x_1": "0--A/x_1", "y": "1--B/y"}
    with pytest.raises(UserError, match=r"0--A/x and 1--B/x: .* same name x\.bin"):
        dumps.ids_by_stem(["0--A/x", "1--B/x"])
    with pytest.raises(UserError, match=r"0--A/x\.y: its name holds a dot"):
        dumps.ids_by_stem(["0--A/x.y"])


def test_bins_whose_outputs_would_share_a_name_are_refused(tmp_path):
    for name in ("b.bin", "a.bin", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in dumps.list_bins(tmp_path, "infer.input")] == ["a.bin", "b.bin"]
    (tmp_path / "a.1.bin").touch()
    with pytest.raises(UserError, match=r"outputs of a\.1\.bin and a\.bin .*a_0\.bin"):
        dumps.list_bins(tmp_path, "infer.input")


def test_bin_sizes_are_the_published_ones(spec):
    model = spec()
    assert dumps.bin_bytes(dumps.bin_contract(model, "f32")) == 7_680_000
    assert dumps.bin_bytes(dumps.bin_contract(model, "u8")) == 1_920_000
    sizes = [4 * int(np.prod(shape)) for shape in dumps.dump_shapes(model)]
    assert sizes == [160_000, 320_000, 320_000, 1_600_000]


@pytest.mark.parametrize("form", dumps.FORMS)
def test_a_bin_is_raw_little_endian_in_c_order(tmp_path, small, form):
    contract = dumps.bin_contract(small, form)
    values = np.random.default_rng(1).integers(0, 256, contract.shape(1)[1:])
    array = np.asfortranarray(values.astype(contract.dtype))
    dumps.write_raw(tmp_path / "a.bin", array)
    content = (tmp_path / "a.bin").read_bytes()
    assert content == np.ascontiguousarray(array, {"f32": "<f4", "u8": "u1"}[form]).tobytes()
    assert len(content) == dumps.bin_bytes(contract)

    row = np.empty(contract.shape(1)[1:], contract.dtype)
    dumps.read_bin_into(tmp_path / "a.bin", row)
    np.testing.assert_array_equal(row, array)
    for wrong in (content[:-1], content + b"\0"):
        (tmp_path / "a.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{len(wrong)} bytes, expected {len(content)}"):
            dumps.read_bin_into(tmp_path / "a.bin", row)


def test_what_the_disk_does_not_take_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none/a\.bin: cannot be written \(No such file"):
        dumps.write_raw(tmp_path / "none" / "a.bin", np.zeros(3, np.float32))


def test_the_form_of_a_folder_is_that_of_most_files(small):
    f32, u8 = (dumps.bin_bytes(dumps.bin_contract(small, form)) for form in dumps.FORMS)
    paths = [Path(name) for name in "abc"]
    assert dumps.bin_form(dict.fromkeys(paths, u8), small, "k") == "u8"
    assert dumps.bin_form(dict(zip(paths, (f32, 7, f32), strict=True)), small, "k") == "f32"
    with pytest.raises(UserError, match=rf"a has 7 bytes, expected {f32} \(f32\) or {u8} \(u8\)"):
        dumps.bin_form(dict.fromkeys(paths, 7), small, "k")


def test_dumps_are_read_as_they_were_written(tmp_path, small):
    maps = heads(2, 8, 16)
    for i, stem in enumerate("ab"):
        write_picture_dump(tmp_path, stem, maps, i)
    found = dumps.find_dumps(tmp_path, "k")
    files = [tuple(found[stem][k] for k in range(4)) for stem in "ba"]
    read = dumps.read_dumps(files, small)
    for name in ("hm", "wh", "offset", "landmarks"):
        array = getattr(read, name)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, getattr(maps, name)[::-1])


def test_pictures_are_paired_with_files_by_name(tmp_path, small):
    write_picture_dump(tmp_path / "x", "b", heads(1, 8, 16))
    write_picture_dump(tmp_path / "y", "a", heads(1, 8, 16))
    write_picture_dump(tmp_path, "stranger", heads(1, 8, 16))
    write_picture_dump(tmp_path, "cut", heads(1, 8, 16))
    (tmp_path / "cut_1.bin").unlink()
    write_picture_dump(tmp_path, "half", heads(1, 8, 16))
    (tmp_path / "half_3.bin").write_bytes(b"\0" * (10 * 8 * 16 * 2))
    items = [
        WorkItem(f"0--E/{name}", f"{name}.jpg", 1) for name in ("a", "absent", "b", "cut", "half")
    ]
    usable, failures = dumps.match_dumps(dumps.find_dumps(tmp_path, "k"), items, small)
    assert [(d.id, d.picture, [f.name for f in d.files]) for d in usable] == [
        ("0--E/a", "a.jpg", list(dumps.dump_names("a"))),
        ("0--E/b", "b.jpg", list(dumps.dump_names("b"))),
    ]
    reasons = dict(failures)
    assert reasons.keys() == {"0--E/absent", "0--E/cut", "0--E/half"}
    assert "no output files absent_*.bin" in reasons["0--E/absent"]
    assert "cut_1.bin is missing; run job=infer again" in reasons["0--E/cut"]
    assert "half_3.bin has 2560 bytes, expected 5120" in reasons["0--E/half"]
    assert "float16" in reasons["0--E/half"]


def test_a_record_refuses_other_settings(tmp_path, spec, small):
    folder = tmp_path / "bins"
    record = dumps.BinRecord.of(dumps.bin_contract(small, "f32"), 3, "abc")
    keys = ("input", "height", "width", "color", "scale", "mean", "std")
    assert dumps.check_record(folder, record, keys, "infer.input") is None

    dumps.write_record(folder, record)
    assert (tmp_path / "bins_preprocess.json").is_file()
    there = dumps.check_record(folder, record, keys, "infer.input")
    assert (there["pictures"], there["fingerprint"]) == (3, "abc")

    other = spec(height=64, width=64, mean=(0.1, 0.2, 0.3))
    expected = dumps.BinRecord.of(dumps.bin_contract(other, "f32"), 0, "")
    with pytest.raises(UserError) as refusal:
        dumps.check_record(folder, expected, keys, "infer.input")
    message = str(refusal.value)
    assert "infer.input=" in message
    assert "height 32, this run has 64" in message
    assert "mean [0.0, 0.0, 0.0], this run has [0.1, 0.2, 0.3]" in message
    assert "width" not in message


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"input": "f32"}', "\x00"])
def test_what_is_no_record_is_refused(tmp_path, small, content):
    record = dumps.BinRecord.of(dumps.bin_contract(small, "f32"), 3, "abc")
    (tmp_path / "bins_preprocess.json").write_text(content)
    with pytest.raises(UserError, match=r"bins_preprocess\.json: not the record"):
        dumps.check_record(tmp_path / "bins", record, ("height",), "infer.input")


times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20)


@given(st.lists(times, min_size=1, max_size=4), st.integers(1, 64))
def test_summary_has_the_tools_keys_and_formula(devices, batch):
    found = json.loads(json.dumps(dumps.summary([*devices, []], batch)))
    assert set(found) == {"NPU_compute_time", "throughput"}
    of_all = [t for device in devices for t in device]
    figures = found["NPU_compute_time"]
    assert list(figures) == ["min", "max", "mean", "median", "percentile(99%)"]
    assert (figures["min"], figures["max"]) == (min(of_all), max(of_all))
    assert figures["mean"] == pytest.approx(sum(of_all) / len(of_all))
    assert figures["min"] <= figures["percentile(99%)"] <= figures["max"]
    rates = [1000 * batch / (sum(device) / len(device)) for device in devices]
    assert found["throughput"] == pytest.approx(sum(rates))


def test_folders_that_hold_something_are_refused(tmp_path):
    dumps.refuse_existing(tmp_path / "new", "infer.output")
    (tmp_path / "empty").mkdir()
    dumps.refuse_existing(tmp_path / "empty", "infer.output")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for name in ("full", "full/a"):
        with pytest.raises(UserError, match=f"infer.output=.*{name}: is there already"):
            dumps.refuse_existing(tmp_path / name, "infer.output")


def test_a_full_disk_is_seen_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    dumps.check_space(tmp_path / "a" / "b", 2_000_000_000, "preprocess.output")
    with pytest.raises(UserError, match=r"needs 24\.8 GB, 3\.0 GB are free"):
        dumps.check_space(tmp_path / "a" / "b", 3226 * 7_680_000, "preprocess.output")

"""What records refuse, which files belong to which picture, and which cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow.files import FORMS, input_bytes, input_contract, output_names
from cfdist.workflow.folders import (
    find_inputs,
    find_outputs,
    ids_by_stem,
    input_record,
    match_outputs,
    without_input,
)

# As WIDER FACE has them: digits and underscores at the end, dashes, no dot.
stems = st.text("ab_-0123", min_size=1, max_size=12)


@pytest.fixture
def small(spec):
    """A model of 32 x 64 pixels: maps of 8 x 16 cells."""
    return spec(height=32, width=64)


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
    usable, failures = match_outputs(find_outputs(tmp_path, "k"), items, small)
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

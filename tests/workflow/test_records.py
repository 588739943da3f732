"""What the JSON files beside the folders say, and what they refuse."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.errors import UserError
from cfdist.workflow.files import input_contract
from cfdist.workflow.records import InputRecord, summary


@pytest.fixture
def small(spec):
    """A model of 32 x 64 pixels: maps of 8 x 16 cells."""
    return spec(height=32, width=64)


def test_a_record_refuses_other_settings(tmp_path, spec, small):
    folder = tmp_path / "bins"
    record = InputRecord.of(input_contract(small, "f32"), 3, "abc")
    keys = ("input", "height", "width", "color", "scale", "mean", "std")
    assert record.check(folder, keys, "infer.input") is None

    record.write(folder)
    assert (tmp_path / "bins_preprocess.json").is_file()
    there = record.check(folder, keys, "infer.input")
    assert (there["pictures"], there["fingerprint"]) == (3, "abc")

    other = spec(height=64, width=64, mean=(0.1, 0.2, 0.3))
    expected = InputRecord.of(input_contract(other, "f32"), 0, "")
    with pytest.raises(UserError) as refusal:
        expected.check(folder, keys, "infer.input")
    message = str(refusal.value)
    assert "infer.input=" in message
    assert "height 32, this run has 64" in message
    assert "mean [0.0, 0.0, 0.0], this run has [0.1, 0.2, 0.3]" in message
    assert "width" not in message


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"input": "f32"}', "\x00"])
def test_what_is_no_record_is_refused(tmp_path, small, content):
    record = InputRecord.of(input_contract(small, "f32"), 3, "abc")
    (tmp_path / "bins_preprocess.json").write_text(content)
    with pytest.raises(UserError, match=r"bins_preprocess\.json: not the record"):
        record.check(tmp_path / "bins", ("height",), "infer.input")


times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20)


@given(st.lists(times, min_size=1, max_size=4), st.integers(1, 64))
def test_summary_has_the_tools_keys_and_formula(devices, batch):
    found = json.loads(json.dumps(summary([*devices, []], batch)))
    assert set(found) == {"NPU_compute_time", "throughput"}
    of_all = [t for device in devices for t in device]
    figures = found["NPU_compute_time"]
    assert list(figures) == ["min", "max", "mean", "median", "percentile(99%)"]
    assert (figures["min"], figures["max"]) == (min(of_all), max(of_all))
    assert figures["mean"] == pytest.approx(sum(of_all) / len(of_all))
    assert figures["min"] <= figures["percentile(99%)"] <= figures["max"]
    rates = [1000 * batch / (sum(device) / len(device)) for device in devices]
    assert found["throughput"] == pytest.approx(sum(rates))

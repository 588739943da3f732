"""What `python -m ais_bench` left is checked file by file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem
from cfdist.workflow import tool
from cfdist.workflow.files import InputFiles, input_contract, output_names


@pytest.fixture
def model(spec):
    return spec(height=32, width=32, batch=1)


@pytest.fixture
def inputs(tmp_path, model) -> InputFiles:
    folder = tmp_path / "bins"
    folder.mkdir()
    items = []
    for stem in ("a", "b"):
        (folder / f"{stem}.bin").write_bytes(b"x")
        items.append(WorkItem(stem, str(folder / f"{stem}.bin"), 1))
    return InputFiles(folder, input_contract(model, "f32"), items, [], None)


def leaving(monkeypatch, *stems: str, summary: bool = True):
    """A tool that leaves the raw outputs of some stems."""

    def run(path, bins: Path, folder: Path, batch: int, devices) -> None:
        folder.mkdir()
        for stem in stems:
            for name, channels in zip(output_names(stem), (1, 2, 2, 10), strict=True):
                np.zeros((channels, 8, 8), np.float32).tofile(folder / name)
        if summary:
            content = json.dumps({"throughput": 5.0})
            folder.with_name(f"{folder.name}_summary.json").write_text(content)

    monkeypatch.setattr(tool, "run_ais_bench", run)


def test_missing_outputs_have_failed(monkeypatch, tmp_path, model, inputs):
    leaving(monkeypatch, "a")
    summary, failures = tool.infer_with_tool(model, inputs, tmp_path / "out", None)
    assert summary == {"throughput": 5.0}
    assert [stem for stem, _ in failures] == ["b"]
    assert "no output files b_*.bin" in failures[0][1]


def test_a_tool_without_a_summary_is_believed(monkeypatch, tmp_path, model, inputs):
    leaving(monkeypatch, "a", "b", summary=False)
    assert tool.infer_with_tool(model, inputs, tmp_path / "out", [0]) == (None, [])


def test_no_output_at_all_is_the_user_s_error(monkeypatch, tmp_path, model, inputs):
    leaving(monkeypatch)
    with pytest.raises(
        UserError, match=r"ais_bench left .*none of the 2 pictures has output files that"
    ):
        tool.infer_with_tool(model, inputs, tmp_path / "out", None)


def test_a_folder_with_other_files_is_refused(model, inputs):
    (inputs.folder / "notes.txt").write_text("not a picture")
    with pytest.raises(UserError, match=r"infer.input=.*would take every file .* notes.txt"):
        tool.check_for_tool(model, inputs, 0, "infer.input")


times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20)


@given(st.lists(times, min_size=1, max_size=4), st.integers(1, 64))
def test_summary_has_the_tools_keys_and_formula(devices, batch):
    found = json.loads(json.dumps(tool.summary([*devices, []], batch)))
    assert set(found) == {"NPU_compute_time", "throughput"}
    of_all = [t for device in devices for t in device]
    figures = found["NPU_compute_time"]
    assert list(figures) == ["min", "max", "mean", "median", "percentile(99%)"]
    assert (figures["min"], figures["max"]) == (min(of_all), max(of_all))
    assert figures["mean"] == pytest.approx(sum(of_all) / len(of_all))
    assert figures["min"] <= figures["percentile(99%)"] <= figures["max"]
    rates = [1000 * batch / (sum(device) / len(device)) for device in devices]
    assert found["throughput"] == pytest.approx(sum(rates))

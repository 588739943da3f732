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

SUMMARY = {"NPU_compute_time": {"mean": 2.0}, "throughput": 5.0}


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

    def run(path, bins: Path, folder: Path, batch: int, call) -> None:
        folder.mkdir()
        for stem in stems:
            for name, channels in zip(output_names(stem), (1, 2, 2, 10), strict=True):
                np.zeros((channels, 8, 8), np.float32).tofile(folder / name)
        if summary:
            content = json.dumps(SUMMARY)
            folder.with_name(f"{folder.name}_summary.json").write_text(content)

    monkeypatch.setattr(tool, "run_ais_bench", run)


def test_missing_outputs_have_failed(monkeypatch, tmp_path, model, inputs):
    leaving(monkeypatch, "a")
    summary, failures = tool.infer_with_tool(model, inputs, tmp_path / "out", tool.ToolCall())
    assert summary == SUMMARY
    assert [stem for stem, _ in failures] == ["b"]
    assert "no output files b_*.bin" in failures[0][1]


def test_a_tool_without_a_summary_is_believed(monkeypatch, tmp_path, model, inputs):
    leaving(monkeypatch, "a", "b", summary=False)
    assert tool.infer_with_tool(model, inputs, tmp_path / "out", tool.ToolCall([0])) == (None, [])


def test_no_output_at_all_is_the_user_s_error(monkeypatch, tmp_path, model, inputs):
    leaving(monkeypatch)
    with pytest.raises(
        UserError, match=r"ais_bench left .*none of the 2 pictures has output files that"
    ):
        tool.infer_with_tool(model, inputs, tmp_path / "out", tool.ToolCall())


def test_a_folder_with_other_files_is_refused(model, inputs):
    (inputs.folder / "notes.txt").write_text("not a picture")
    with pytest.raises(UserError, match=r"infer.input=.*would take every file .* notes.txt"):
        tool.check_for_tool(model, inputs, 0, "infer.input")


times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20)


@given(st.lists(times, min_size=1, max_size=4), st.integers(1, 64))
def test_summary_has_the_tools_keys_and_formula(devices, batch):
    items = [WorkItem("a", "bins/a.bin", 1), WorkItem("b", "bins/b.bin", 1)]
    found = json.loads(json.dumps(tool.summary([*devices, []], batch, items, Path("out"))))
    assert list(found) == [
        *("filesinfo", "args", "NPU_compute_time", "H2D_latency", "D2H_latency"),
        *("npu_compute_time_list", "throughput", "pid"),
    ]
    assert found["filesinfo"]["1"] == {
        "infiles": ["bins/b.bin"],
        "outfiles": [f"out/b_{k}.bin" for k in range(4)],
    }
    of_all = [t for device in devices for t in device]
    figures = found["NPU_compute_time"]
    assert list(figures) == ["min", "max", "mean", "median", "percentile(99%)", "count"]
    assert found["H2D_latency"] == found["D2H_latency"] == dict.fromkeys(figures, 0)
    assert figures["count"] == len(of_all) == len(found["npu_compute_time_list"])
    assert (figures["min"], figures["max"]) == (min(of_all), max(of_all))
    assert figures["mean"] == pytest.approx(sum(of_all) / len(of_all))
    assert figures["min"] <= figures["percentile(99%)"] <= figures["max"]
    rates = [1000 * batch / (sum(device) / len(device)) for device in devices]
    assert found["throughput"] == pytest.approx(sum(rates))


@given(st.lists(times, min_size=1, max_size=4), st.integers(1, 64), st.booleans())
def test_summaries_of_several_chips_are_joined(devices, batch, are_listed):
    chips = [tool.summary([device], batch) for device in devices]
    if not are_listed:
        for chip in chips:
            del chip["npu_compute_time_list"]
    found, whole = tool.joined(chips), tool.summary(devices, batch)
    for name in ("min", "max", "mean", "count"):
        assert found["NPU_compute_time"][name] == pytest.approx(whole["NPU_compute_time"][name])
    assert ("median" in found["NPU_compute_time"]) == are_listed
    assert found["throughput"] == pytest.approx(whole["throughput"])
    assert found["devices"] == chips


def test_the_summaries_of_two_chips_become_one(monkeypatch, tmp_path, model, inputs):
    leaving(monkeypatch, "a", "b", summary=False)
    run, folder = tool.run_ais_bench, tmp_path / "out"

    def on_two(*arguments) -> None:
        run(*arguments)
        for number, mean in enumerate((2.0, 4.0)):
            content = {"NPU_compute_time": {"mean": mean, "count": 3}, "throughput": 1000 / mean}
            (folder / f"device{number}_{number}_summary.json").write_text(json.dumps(content))

    monkeypatch.setattr(tool, "run_ais_bench", on_two)
    found, failures = tool.infer_with_tool(model, inputs, folder, tool.ToolCall([0, 1]))
    assert failures == []
    assert found["NPU_compute_time"] == {"mean": 3.0, "count": 6}
    assert found["throughput"] == 750.0
    assert json.loads((tmp_path / "out_summary.json").read_text()) == found


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"NPU_compute_time": {}}', "\x00"])
def test_what_is_no_summary_is_none(monkeypatch, tmp_path, model, inputs, content):
    leaving(monkeypatch, "a", "b", summary=False)
    (tmp_path / "out_summary.json").write_text(content)
    found, _ = tool.infer_with_tool(model, inputs, tmp_path / "out", tool.ToolCall())
    assert found is None

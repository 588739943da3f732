"""The presets for Ascend do what their names promise, with doubles of ATC and ais_bench."""

from __future__ import annotations

import json

import pytest

from tests.fakes.ascend import install_atc, install_double, install_npu_smi, small_network

SIZE = ("model.height=64", "model.width=64")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def test_the_presets_for_ascend_run_what_convert_has_made(command, tmp_path, monkeypatch):
    install_double(monkeypatch)
    install_atc(monkeypatch, tmp_path / "bin")
    install_npu_smi(monkeypatch, tmp_path / "bin")
    (tmp_path / "CenterFace.onnx").write_bytes(small_network())
    model = ("model=centerface_pytorch", "model.path=CenterFace.onnx")
    made = command(
        "job=convert", *model, "convert.aipp=true", "convert.batches=[16]", *SIZE, "output_dir=made"
    )
    assert made.returncode == 0, made.stderr
    for name in ("two_chips", "ascend"):
        done = command(f"experiment={name}", "dataset.limit=20", *SIZE, f"output_dir={name}")
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert (results["backend"], results["batch"]) == ("om", 16)
        assert next(iter(results["ap"])) == "guide"
        assert sorted(one["chip"] for one in results["devices"]) == ["0", "1"]
    wrong = command("experiment=two_chips", "devices=3", *SIZE)
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1

"""The preset sets what was found, and what the person had typed."""

from __future__ import annotations

from pathlib import Path

import yaml

from cfdist.tuning.candidates import Candidate, Variant
from cfdist.tuning.preset import preset_settings, write_preset


def typed(compose, *settings: str):
    config = compose("job=tune", *settings)
    config.mark_typed(frozenset(one.partition("=")[0] for one in settings))
    return config


def test_a_preset_has_what_was_tuned_and_what_was_typed(compose, tmp_path):
    config = typed(
        compose, "model=centerface_pytorch", "model.path=net_{batch}.onnx", "model.width=64",
        "dataset.limit=4", "tune.minutes=3",
    )  # fmt: skip
    best = Candidate(Variant("openvino", '{"precision": "bf16"}'), 2, 8)
    path = write_preset(config, best, tmp_path, "9 pictures/s")
    assert path == tmp_path / "conf" / "experiment" / "tuned.yaml"
    text = path.read_text()
    assert text.startswith("# @package _global_\n# 9 pictures/s\n")
    assert yaml.safe_load(text) == {
        "defaults": [{"override /model": "centerface_pytorch"}, {"override /backend": "openvino"}],
        "backend": {"precision": "bf16", "streams": 2},
        # From any folder it is the same file.
        "model": {"batch": 8, "path": str(Path("net_{batch}.onnx").absolute()), "width": 64},
    }


def test_a_further_file_takes_the_place_of_the_model_s(compose):
    config = typed(compose, "model.path=a.onnx", f"model.sha256={'0' * 64}")
    best = Candidate(Variant("onnxruntime", file="s3://bucket/int8.onnx"), None, 1)
    assert preset_settings(config, best) == {
        "model.path": "s3://bucket/int8.onnx", "model.batch": 1,
    }  # fmt: skip


def test_a_preset_for_the_cpu_has_no_part_of_a_gpu(compose):
    config = typed(compose, "backend.gpus_per_device=0.5")
    best = Candidate(Variant("torch", '{"device": "cpu"}'), 1, 1)
    assert preset_settings(config, best)["backend.gpus_per_device"] == 1


def test_a_backend_of_one_s_own_is_named_by_its_class(compose, tmp_path):
    path = write_preset(typed(compose), Candidate(Variant("mine:Fast"), None, 1), tmp_path, "x")
    assert yaml.safe_load(path.read_text())["backend"] == {"name": "mine:Fast"}

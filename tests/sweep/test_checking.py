"""What a sweep is refused for before its first run."""

from __future__ import annotations

import pytest

from cfdist import config
from cfdist.errors import UserError
from cfdist.sweep.checking import check_run


def check(*overrides: str) -> None:
    prepared = [config.prepare_override(one, is_multirun=True) for one in overrides]
    check_run(config.compose_prepared(*prepared), prepared, config.typed_keys(prepared))


def test_a_run_of_good_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_bs8.om").touch()
    (tmp_path / "a.zip").touch()
    (tmp_path / "a${b}c").touch()
    check("model.batch=4", f"model.path={tmp_path}/a.zip/model.onnx", f"dataset.root={tmp_path}")
    check("output_dir=nope", "dataset.root=s3://bucket/nope", "+model.path=null")
    check("job=infer", "infer.name=nope", f"infer.input={tmp_path}/a.zip")
    check("job=quantize", "quantize.calibration=nope/*.jpg")
    check("job=convert", "convert.output=nope")
    check("model.path=a_bs{batch}.om", "model.batch=8", f"dataset.root={tmp_path}/a${{b}}c")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.batch=0"], "model.batch=0: must be a whole number"),
        (["job=convert", "predictions=."], "predictions: job=convert does not read it"),
        (["model.path=nope.onnx"], "model.path=nope.onnx: no such file or folder"),
        (["job=score", "predictions=/etc/nope"], "predictions=/etc/nope: no such file or folder"),
    ],
)
def test_a_run_that_would_be_refused(overrides, line):
    with pytest.raises(UserError, match=line):
        check(*overrides)

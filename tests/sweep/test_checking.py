"""What a sweep is refused for before its first run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cfdist import config
from cfdist.errors import UserError
from cfdist.sweep import checking


def check(*overrides: str) -> None:
    """Check the first run of a sweep that is given these settings."""
    prepared = [config.prepare_override(one, is_multirun=True) for one in overrides]
    composed = config.compose_prepared(*prepared)
    checking.check_run(composed, prepared, config.typed_keys(prepared), 0)


def refusal(*overrides: str) -> str:
    """What a run is refused for; empty: it is not."""
    try:
        check(*overrides)
    except UserError as error:
        return str(error)
    return ""


def test_a_run_of_good_settings_is_not_refused_and_without_its_file_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_bs8.om").touch()
    (tmp_path / "a.zip").touch()
    (tmp_path / "a${b}c").touch()
    reads_files = [
        ["model.batch=4", f"model.path={tmp_path}/a.zip/model.onnx", f"dataset.root={tmp_path}"],
        ["job=infer", "infer.name=nope", f"infer.input={tmp_path}/a.zip"],
        ["job=compare", "reference=a.zip", "candidate=onnxruntime:nope.onnx"],
        ["model.path=a_bs{batch}.om", "model.batch=8", f"dataset.root={tmp_path}/a${{b}}c"],
    ]
    others = [
        ["output_dir=nope", "dataset.root=s3://bucket/nope", "+model.path=null"],
        ["job=quantize", "quantize.calibration=nope/*.jpg"],
        ["job=convert", "convert.output=nope"],
    ]
    assert [refusal(*one) for one in reads_files + others] == [""] * 7
    for name in ("a_bs8.om", "a.zip", "a${b}c"):
        (tmp_path / name).unlink()
    gone = [refusal(*one) for one in reads_files]
    assert ["no such file or folder" in one for one in gone] == [True] * 4


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.batch=0"], "model.batch=0: must be a whole number"),
        (["job=convert", "predictions=."], "predictions: job=convert does not read it"),
        (["model.path=nope.onnx"], "model.path=nope.onnx: no such file or folder"),
        (["job=compare", "candidate=nope.onnx"], "candidate=nope.onnx: no such file or folder"),
        (["job=score", "predictions=/etc/nope"], "predictions=/etc/nope: no such file or folder"),
    ],
)
def test_a_run_that_would_be_refused(overrides, line):
    with pytest.raises(UserError, match=line):
        check(*overrides)


def test_a_finished_run_reads_nothing_any_more(tmp_path):
    settings = [f"output_dir={tmp_path}", "model.path=nope.onnx"]
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "results.json").touch()
    check(*settings)
    with pytest.raises(UserError, match=r"model\.batch=0"):
        check(*settings, "model.batch=0")


def test_what_is_wrong_with_each_run_is_said(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py"])
    overrides = [[["model.batch=0"], [f"model.path={'n' * 300}"], ["model.path=nope.onnx"]]]
    loader = SimpleNamespace(load_sweep_config=lambda _, one: config.compose_prepared(*one))
    sweeper = SimpleNamespace(
        batch_index=1,
        overrides=overrides,
        config={},
        hydra_context=SimpleNamespace(config_loader=loader),
    )
    with pytest.raises(SystemExit, match="2"):
        checking._check(sweeper, [])
    said = capsys.readouterr().err.splitlines()
    parts = ("model.batch=0", "File name too long", "model.path=nope.onnx: no such file")
    assert [part in line for part, line in zip(parts, said, strict=True)] == [True] * 3

"""A setting without effect never passes: one line, exit code 2, before Ray, nothing written."""

from __future__ import annotations

import re

import pytest

import cfdist


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # One of each kind: tests/config/test_unused.py walks every key and every job.
        (["predictions=DIR"], ["predictions: job=evaluate does not read it", "job=score"]),
        (["backend=onnxruntime", "backend.precision=bf16"], ["only with backend=openvino"]),
        (["job=score", "backend=torch"], ["backend: job=score does not read it"]),
        (["backend=openvino", "model.outputs=[a,b,c,d]"], ["missing 'a', 'b', 'c', 'd'"]),
        (["backend=openvino", "devices=[5]"], ["devices=[5]: CPU devices have no numbers"]),
        (["backend=openvino", "devices=1000"], ["devices=1000: these devices share", "at most"]),
        (["backend=openvino", "backend.streams=1000"], ["backend.streams=1000: a device here"]),
        (["backend=openvino", "pipeline.readers=1024", "devices=8"], ["ask for at most"]),
        (["job=compare", "reference=nope.onnx", "candidate=x.onnx"], ["cfdist: reference=nope"]),
        (["hydra.run.dir=X"], ["hydra.run.dir=X: cfdist sets this itself", "output_dir"]),
        (["hydra/launcher=joblib"], ["hydra/launcher=joblib: cfdist sets this itself"]),
        (["--config-dir", "x"], ["--config-dir=x: no such folder"]),
        (["--cfg", "job", "model.batch=0"], ["model.batch=0: must be"]),
        (["convert.batches=[1,1]", "job=convert"], ["convert.batches=[1, 1]: must be"]),
        (["--help", "job=conv"], ["job=conv: must be evaluate"]),
        (["--help", "job=convert", "foo=1"], ["leave foo=1 out"]),
        (["--version", "foo"], ["--version: stands alone; leave foo out"]),
        (["model.batch=4", "++model.batch=8"], ["model.batch: given twice, model.batch=4 and ++"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_has_no_effect(command, tmp_path, arguments, words):
    result = command(*arguments)
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"(starting job=\w+ \.\.\.\n)?", result.stdout)
    (line,) = result.stderr.splitlines()
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_a_sweep_to_which_a_setting_means_nothing_is_refused(command, tmp_path):
    result = command("-m", "job=score,convert", "predictions=none")
    assert result.returncode == 2
    first, second = result.stderr.splitlines()
    assert "none" in first
    assert second == "cfdist: predictions: job=convert does not read it; it is for job=score"
    assert list(tmp_path.iterdir()) == []


def test_questions_are_answered(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    page = command("job=convert", "--help")
    assert page.returncode == 0
    assert max(map(len, page.stdout.splitlines())) <= 60
    assert "convert.batches" in page.stdout
    assert "compare.ap" not in page.stdout
    assert command("--version").stdout == f"cfdist {cfdist.__version__}\n"
    shown = command("--cfg", "job", "model.batch=4")
    assert "batch: 4\n" in shown.stdout
    assert list(tmp_path.iterdir()) == []

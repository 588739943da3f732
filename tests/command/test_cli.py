"""A job's end: whatever breaks, in a sweep it is that run's alone."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

import cfdist
from cfdist.command import cli
from cfdist.command.arguments import Question
from cfdist.errors import ExitCode, UserError


@pytest.fixture
def run_member(monkeypatch, tmp_path):
    """Runs number 3 of a sweep, whose job raises an error; gives its outcome."""
    hydra = SimpleNamespace(
        mode=RunMode.MULTIRUN, job=SimpleNamespace(num=3), overrides=SimpleNamespace(task=["a=1"])
    )
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(cli.config, "load", lambda composed, typed: composed)
    monkeypatch.setattr(cli, "outcomes", [])

    def run(error: BaseException) -> cli.JobOutcome:
        def break_down(*_):
            raise error

        monkeypatch.setattr(cli, "_run", break_down)
        cli.run_job(OmegaConf.create({"output_dir": str(tmp_path)}))
        (outcome,) = cli.outcomes
        return outcome

    return run


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize("file", [None, "/disk/run.log"])
def test_a_file_that_cannot_be_used_is_bad_input(run_member, capsys, tmp_path, file):
    outcome = run_member(OSError(errno.ENOSPC, FULL, file))
    assert (outcome.folder, outcome.exit_code) == (tmp_path / "3", ExitCode.BAD_INPUT)
    where = file or f"output_dir={tmp_path / '3'}"
    assert outcome.reason.startswith(f"{where}: {FULL}; ")
    assert capsys.readouterr().err == f"cfdist: {outcome.reason}\n"


def test_any_other_error_is_internal_and_shows_its_traceback(run_member, capsys):
    outcome = run_member(KeyError("expected"))
    assert outcome.exit_code == ExitCode.INTERNAL
    assert outcome.reason == "internal error: KeyError: 'expected'"
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith(f"cfdist: {outcome.reason}\n")


def test_the_help_of_one_job_and_the_version(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    page = cli.answer(Question("help", "convert"))
    assert "convert.batches" in page
    assert "compare.ap" not in page
    assert max(map(len, page.splitlines())) <= 60
    assert cli.answer(Question("version")) == f"cfdist {cfdist.__version__}"
    with pytest.raises(UserError, match="job=conv: must be evaluate"):
        cli.answer(Question("help", "conv"))


def test_settings_are_shown_as_a_run_would_take_them(monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "--cfg", "job", "model.batch=4"])
    shown = OmegaConf.create(cli.answer(Question("settings")))
    assert shown.model.batch == 4
    assert "hydra" not in shown
    monkeypatch.setattr("sys.argv", ["main.py", "--cfg", "job", "predictions=p"])
    with pytest.raises(UserError, match="predictions: job=evaluate does not read it"):
        cli.answer(Question("settings"))


def test_an_interruption_ends_the_sweep(run_member):
    with pytest.raises(KeyboardInterrupt):
        run_member(KeyboardInterrupt())
    assert cli.outcomes == []

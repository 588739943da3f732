"""A job's end: whatever breaks, in a sweep it is that run's alone."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from cfdist.command import cli
from cfdist.errors import ExitCode


@pytest.fixture
def run_member(monkeypatch, tmp_path):
    """Runs number 3 of a sweep, whose job raises an error; gives its outcome."""
    hydra = SimpleNamespace(
        mode=RunMode.MULTIRUN, job=SimpleNamespace(num=3), overrides=SimpleNamespace(task=["a=1"])
    )
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(cli.config, "load", lambda composed: composed)
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


def test_an_interruption_ends_the_sweep(run_member):
    with pytest.raises(KeyboardInterrupt):
        run_member(KeyboardInterrupt())
    assert cli.outcomes == []

"""A job's end: whatever breaks, in a sweep it is that run's alone."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

import cfdist
from cfdist.command import cli
from cfdist.command.arguments import Question
from cfdist.config.schema import LogConfig
from cfdist.errors import ExitCode, TerminatedError, UserError

SCREEN = {"job": "evaluate", "progress": "text", "quiet": False, "verbose": False}


def resolved(composed, typed):
    """In place of the checked configuration: its values as they are."""
    values = OmegaConf.to_container(composed, resolve=True)
    rest = {
        "resume": None,
        "convert": SimpleNamespace(dry_run=False),
        "cluster": SimpleNamespace(joined=None),
        "log": LogConfig(),
    }
    return SimpleNamespace(**{**rest, **SCREEN, **values}, typed=lambda: typed)


@pytest.fixture
def run_member(monkeypatch, tmp_path):
    """Runs number 3 of a sweep, whose job raises an error; gives its outcome."""
    hydra = SimpleNamespace(
        mode=RunMode.MULTIRUN, job=SimpleNamespace(num=3), overrides=SimpleNamespace(task=["a=1"])
    )
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(cli.config, "load", resolved)
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
    assert (outcome.folder, outcome.exit_code) == (tmp_path / "3", ExitCode.DISK_FULL)
    where = file or f"output_dir={tmp_path / '3'}"
    assert outcome.reason.startswith(f"{where}: {FULL}; ")
    assert capsys.readouterr().err == f"cfdist: {outcome.reason}\n"


@pytest.fixture
def run_job(monkeypatch, tmp_path):
    """Runs a job that raises an error in a folder of its own; gives its outcome."""
    hydra = SimpleNamespace(
        mode=RunMode.RUN, job=SimpleNamespace(num=0), overrides=SimpleNamespace(task=[])
    )
    monkeypatch.setattr(cli.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(cli.config, "load", resolved)
    monkeypatch.setattr(cli, "outcomes", [])

    def run(error: BaseException, output_dir: str | None = None) -> cli.JobOutcome:
        def main(*_):
            raise error

        monkeypatch.setattr(cli, "load_job", lambda name: SimpleNamespace(main=main))
        folder = output_dir or str(tmp_path / "out")
        cli.run_job(OmegaConf.create({"job": "score", "output_dir": cli.config.literal(folder)}))
        (outcome,) = cli.outcomes
        return outcome

    return run


def wrapped(error: OSError) -> Exception:
    """As Ray does with what an actor raises."""
    outer = RuntimeError("task failed")
    outer.cause = error
    return outer


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
@pytest.mark.parametrize(
    ("number", "file", "words"),
    [
        (
            errno.EACCES,
            "/data/images/0--Parade",
            "see that it is there and to its permissions, or name",
        ),
        (errno.ENOTDIR, "/data/model.onnx", "or name another"),
        (errno.ENOSPC, None, "make room, or choose another output_dir"),
    ],
)
def test_a_job_s_file_that_cannot_be_used_is_bad_input(
    run_job, tmp_path, capsys, wrap, number, file, words
):
    outcome = run_job(wrap(OSError(number, os.strerror(number), file)))
    is_full = number == errno.ENOSPC
    assert outcome.exit_code == (ExitCode.DISK_FULL if is_full else ExitCode.BAD_INPUT)
    where = file or f"output_dir={tmp_path / 'out'}"
    assert outcome.reason.startswith(f"{where}: {os.strerror(number)}; ")
    assert words in outcome.reason
    assert capsys.readouterr().err == f"cfdist: {outcome.reason}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "reset"), OSError("no number"), KeyError("a")]
)
def test_errors_of_no_file_are_internal(run_job, error):
    assert run_job(error).exit_code == ExitCode.INTERNAL


@pytest.mark.parametrize("name", ["a${b}c", "a${", "20240614", "my\\out"])
def test_a_run_s_folder_may_have_any_name(monkeypatch, run_job, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert run_job(KeyError("a"), name).folder == tmp_path / name
    record = (tmp_path / name / "config.yaml").read_text()
    assert yaml.safe_load(record)["output_dir"] == str(tmp_path / name)


def test_any_other_error_is_internal_and_shows_its_traceback(run_member, capsys):
    outcome = run_member(KeyError("expected"))
    assert outcome.exit_code == ExitCode.INTERNAL
    assert outcome.reason == "internal error: KeyError: 'expected'"
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith(f"cfdist: {outcome.reason}\n")


@pytest.mark.slow
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


def test_an_interruption_ends_the_sweep_and_says_how_to_go_on(run_member, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(cli, "note_how_to_go_on", told.append)
    with pytest.raises(TerminatedError):
        run_member(TerminatedError())
    (how_to_go_on,) = told
    assert how_to_go_on() == ""
    (tmp_path / "multirun.yaml").touch()
    assert how_to_go_on().startswith("; go on with: ")
    assert how_to_go_on().endswith(f" resume={tmp_path}")
    assert cli.outcomes == []


def test_an_error_that_came_of_an_interruption_is_no_error_of_its_own(run_member, monkeypatch):
    monkeypatch.setattr(cli.interruptions, "_first", TerminatedError())
    with pytest.raises(TerminatedError):
        run_member(RuntimeError("the actor has died"))
    assert cli.outcomes == []


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        (["model.batch=2"], None),
        (["-m", "devices=1,2"], None),
        (["experiment='quick'"], None),
        (["experiment='published_table'", "devices=1"], RunMode.MULTIRUN),
        (["experiment='multi_scale'"], "composed"),  # it could inherit a mode
        (["experiment=['quick']"], "composed"),
        (["hydra.mode=MULTIRUN"], "composed"),
        (["output_dir='experiment'"], "composed"),
    ],
)
def test_hydra_composes_a_second_time_only_where_nothing_else_tells_its_mode(
    monkeypatch, arguments, mode
):
    before = cli.Hydra.get_mode
    monkeypatch.setattr(cli.sys, "argv", ["main.py", *arguments])
    with cli.held:
        cli._spare_composing()
        if cli.Hydra.get_mode is not before:
            assert cli.Hydra.get_mode(None, config_name="", overrides=[]) is mode
        assert (cli.Hydra.get_mode is before) == (mode == "composed")
    assert cli.Hydra.get_mode is before


def test_what_a_name_would_do_to_the_screen_is_shown(capsys):
    cli.fail(ExitCode.BAD_INPUT, "\033[31mred\033[0m \ta\rb 文 café")
    assert capsys.readouterr().err.startswith("cfdist: \\x1b[31mred\\x1b[0m \ta\\rb 文 café")

"""Who may use a run's and a sweep's folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import subprocess
from contextlib import nullcontext

import pytest

from cfdist.command import run_folder
from cfdist.command.run_folder import claim, claim_sweep, finished_results, is_held
from cfdist.errors import UserError


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_sweep_that_left_nothing_leaves_no_folder(tmp_path):
    folder = tmp_path / "outputs" / "now"
    with claim_sweep(folder):
        (folder / "multirun.yaml").touch()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["0", "sweep.md"])
def test_what_a_sweep_left_stays(tmp_path, name):
    folder = tmp_path / "out"
    with claim_sweep(folder):
        (folder / name).touch()
    assert name in names(folder)


def test_a_folder_that_was_there_stays(tmp_path):
    with claim_sweep(tmp_path):
        (tmp_path / "multirun.yaml").touch()
    with claim_sweep(tmp_path):  # an interrupted sweep goes on
        pass
    assert "multirun.yaml" in names(tmp_path)


@pytest.mark.parametrize("name", run_folder.SWEEP_FILES)
def test_a_finished_sweep_is_refused_for_sweeps_and_runs(tmp_path, name):
    for one in (".lock", name):
        (tmp_path / one).touch()
    # One that was killed before its table was there goes on.
    refused = pytest.raises(UserError, match="holds a finished sweep")
    with refused if name == "sweep.csv" else nullcontext(), claim_sweep(tmp_path):
        pass
    with pytest.raises(UserError, match="holds a sweep"), claim(tmp_path, ""):
        pass


@pytest.mark.parametrize("name", ["results.json", "predictions", "journal"])
def test_a_single_run_s_folder_is_refused_for_sweeps(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="holds a single run"), claim_sweep(tmp_path):
        pass


def test_an_interrupted_sweep_s_folder_is_refused_for_runs(tmp_path):
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(UserError, match="holds a sweep"), claim(tmp_path, ""):
        pass


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt", "pictures"])
@pytest.mark.parametrize("hold", [lambda folder: claim(folder, ""), claim_sweep])
def test_a_stranger_s_folder_is_refused_and_left_as_it_is(tmp_path, name, hold):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds '{name}', which no run"), hold(tmp_path):
        pass
    assert names(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "mine"


def test_only_folders_that_were_made_for_a_run_are_removed(tmp_path):
    with pytest.raises(UserError), claim(tmp_path / "mine" / "a" / "b", ""):
        raise UserError("no")
    assert names(tmp_path) == set()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError), claim(tmp_path / "mine" / "a" / "b", ""):
        raise UserError("no")
    assert names(tmp_path) == {"mine"}
    assert names(tmp_path / "mine") == set()


def test_a_run_that_leaves_nothing_leaves_no_folder(tmp_path):
    with claim(tmp_path / "out", "a"):
        pass
    assert names(tmp_path) == set()
    with claim(tmp_path / "out", "a"):
        (tmp_path / "out" / "results.json").touch()
    assert "config.yaml" in names(tmp_path / "out")


def test_a_run_that_failed_may_be_run_again_in_its_folder(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path / "out", "a"):
        raise RuntimeError
    with claim(tmp_path / "out", "b"):
        assert (tmp_path / "out" / "config.yaml").read_text() == "b"


def test_two_sweeps_never_share_a_folder(tmp_path):
    with (
        claim_sweep(tmp_path),
        pytest.raises(UserError, match="another run is using it"),
        claim_sweep(tmp_path),
    ):
        pass


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    """A file system without `flock`."""

    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)


def test_without_locks_a_folder_is_held_by_one_process(tmp_path, no_locks):
    folder = tmp_path
    with claim(folder, "a"):
        refused = pytest.raises(UserError, match=rf"another run .*process {os.getpid()} on")
        with refused, claim(folder, "b"):
            pass
        assert (folder / "config.yaml").read_text() == "a"
    with claim(folder, "b"):
        assert (folder / "config.yaml").read_text() == "b"
    assert names(folder) == {".lock", "config.yaml"}


def test_without_locks_a_held_folder_is_known_as_one(tmp_path, no_locks):
    assert not is_held(tmp_path)
    with claim(tmp_path, "a"):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with subprocess.Popen(["true"]) as dead:
        pass
    for holder, expected in ((f"{socket.gethostname()} {dead.pid}", False), ("far 1", True)):
        (tmp_path / ".holder").write_text(holder)
        assert is_held(tmp_path) == expected


def test_without_locks_a_refused_run_leaves_no_folder(tmp_path, no_locks):
    with pytest.raises(UserError, match="no"), claim(tmp_path / "outputs" / "now", "a"):
        raise UserError("no")
    with claim_sweep(tmp_path / "outputs" / "now"):
        pass
    assert names(tmp_path) == set()


def test_without_locks_a_dead_process_of_this_host_holds_nothing(tmp_path, no_locks):
    with subprocess.Popen(["true"]) as dead:
        pass
    folder = tmp_path
    with claim(folder, "a"):
        pass
    (folder / ".holder").write_text(f"{socket.gethostname()} {dead.pid}")
    with claim(folder, "b"):
        assert (folder / ".holder").read_text().endswith(f" {os.getpid()}")
    (folder / ".holder").write_text(f"elsewhere {dead.pid}")
    with pytest.raises(UserError, match=r"on elsewhere.*remove"), claim(folder, "c"):
        pass


def test_only_results_of_the_very_settings_count_as_finished(tmp_path):
    settings = "model:\n  batch: 4\n"
    assert finished_results(tmp_path, settings) is None
    with claim(tmp_path, settings):
        assert finished_results(tmp_path, settings) is None
        (tmp_path / "results.json").write_text(json.dumps({"job": "evaluate"}))
    assert finished_results(tmp_path, settings) == {"job": "evaluate"}
    assert finished_results(tmp_path, settings.replace("4", "8")) is None
    assert finished_results(tmp_path, f"{settings}quiet: true\nreport: false\n") == {
        "job": "evaluate"
    }
    newer = "eval:\n  metrics: []\n  gate: true\n"
    assert finished_results(tmp_path, settings + newer) == {"job": "evaluate"}
    assert finished_results(tmp_path, settings + newer, {"eval.metrics"}) == {"job": "evaluate"}
    for typed in ("eval.gate", "eval", "experiment"):
        assert finished_results(tmp_path, settings + newer, {typed}) is None
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}_moved"))
    assert finished_results(moved, f"{settings}output_dir: {moved}\n") == {"job": "evaluate"}


@pytest.mark.parametrize("content", ["", '{"job": "eval', "[1, 2]", b"\xff\xfe"])
def test_results_that_are_none_are_the_user_s_error(tmp_path, content):
    (tmp_path / "config.yaml").write_text("job: evaluate\n")
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "results.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"results\.json.*remove it"):
        finished_results(tmp_path, "job: evaluate\n")


def test_a_configuration_that_is_no_text_is_another_run_s(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "results.json").write_text("{}")
    assert finished_results(tmp_path, "job: evaluate\n") is None
    (tmp_path / "config.yaml").write_text("")
    assert finished_results(tmp_path, "eval:\n  metrics: []\n") is None


def test_a_disk_that_is_full_refuses_the_run_and_leaves_no_folder(tmp_path, monkeypatch):
    def write_text(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder, "write_text", write_text)
    folder = tmp_path / "outputs" / "now"
    with (
        pytest.raises(OSError, match=r"config.yaml cannot be written \(No space left"),
        claim(folder, ""),
    ):
        pass
    assert names(tmp_path) == set()


def test_a_folder_with_the_log_of_a_tool_that_failed_takes_the_next_try(tmp_path):
    folder = tmp_path / "outputs" / "now"
    with pytest.raises(UserError), claim(folder, "job: convert\n"):
        (folder / "atc_bs1.log").write_text("E10001: no")
        raise UserError("atc failed")
    assert "atc_bs1.log" in names(folder)
    with claim(folder, "job: convert\n"):
        pass


def test_a_run_s_files_hold_no_secrets_and_it_is_known_again(tmp_path):
    text = "dataset:\n  root: s3://key:secret@b\n"
    with claim(tmp_path / "out", text):
        logging.getLogger("x").warning("cannot read %s", "s3://key:secret@b")
    (tmp_path / "out" / "results.json").write_text("{}")
    for name in ("config.yaml", "run.log"):
        assert "s3://key:***@b" in (tmp_path / "out" / name).read_text()
    assert finished_results(tmp_path / "out", text) == {}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["job=evaluate"], "output_dir"),
        (["job=evaluate", "output_dir=here"], "output_dir"),
        (["job=export", "output_dir=/out", "export.output=a.onnx"], "export.output"),
        (["job=convert", "output_dir=/out"], "convert.output"),
        (["job=preprocess", "output_dir=/out", "preprocess.output=../b"], "preprocess.output"),
        (["job=evaluate", "output_dir=/out"], None),
        (["job=preprocess", "output_dir=/out"], None),
        (["job=preprocess", "output_dir=/out", "preprocess.output=/b"], None),
    ],
)
def test_nothing_is_written_into_a_submitted_job_s_package(
    tmp_path, monkeypatch, compose, settings, key
):
    package = tmp_path / "working_dir_files" / "_ray_pkg_1" / "jobs"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    config = compose(*settings)
    if key is None:
        assert run_folder.refuse_package_folder(config) is None
    else:
        with pytest.raises(UserError, match=rf"^{key}=.*package.*{key}=/\.\.\."):
            run_folder.refuse_package_folder(config)
    monkeypatch.chdir(tmp_path)
    assert run_folder.refuse_package_folder(compose("output_dir=here")) is None


@pytest.mark.parametrize("name", ["loop/out", "x" * 300])
def test_a_folder_that_cannot_be_looked_at_is_refused_as_any_other(tmp_path, compose, name):
    (tmp_path / "loop").symlink_to("loop")
    folder = tmp_path / name
    run_folder.refuse_package_folder(compose(f"output_dir={folder}"))
    assert not run_folder.is_begun(folder)
    with pytest.raises((UserError, OSError)), run_folder.claim(folder, ""):
        pass


def test_a_run_that_may_not_go_on_leaves_the_settings_of_the_one_that_began(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(KeyError), claim(folder, "first"):
        (folder / "journal").mkdir()
        (folder / "journal" / "run.json").touch()
        raise KeyError
    with pytest.raises(UserError), claim(folder, "other"):
        raise UserError("another run's")
    assert (folder / "config.yaml").read_text() == "first"
    with claim(folder, "on more devices"):
        pass
    assert (folder / "config.yaml").read_text() == "on more devices"


@pytest.mark.parametrize("names", [[], [".run.json.0a.partial"]])
def test_a_run_that_was_killed_before_its_journal_goes_on(tmp_path, names):
    folder = tmp_path / "out"
    with pytest.raises(KeyError), claim(folder, "first"):
        (folder / "journal").mkdir()
        (folder / ".results.json.0a.partial").touch()
        for name in names:
            (folder / "journal" / name).touch()
        raise KeyError
    with claim(folder, "again"):
        assert is_held(folder)
        assert not (folder / ".results.json.0a.partial").exists()
    assert not is_held(folder)
    (folder / ".lock").unlink()
    with pytest.raises(UserError, match=r"holds 'config\.yaml', which no run"), claim(folder, ""):
        pass


def test_a_disk_without_room_makes_no_noise_in_the_log(tmp_path, capsys):
    log = logging.getLogger("somewhere")
    with claim(tmp_path / "out", ""):
        (tmp_path / "out" / "run.log").symlink_to("/dev/full")
        for _ in range(3):
            log.warning("a line")
    with claim(tmp_path / "other", ""):
        (tmp_path / "other" / "run.log").mkdir()  # cannot be opened
        log.warning("a line")
    assert capsys.readouterr().err == ""

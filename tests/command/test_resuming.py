"""A run that ended early goes on by one command, with its own settings and no others."""

from __future__ import annotations

import errno
import os
import shlex
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cfdist import config, storage
from cfdist.command import resuming
from cfdist.command.arguments import prepare_arguments
from cfdist.command.resuming import going_on, is_unfinished, run_to_go_on, sweep_to_go_on
from cfdist.command.run_folder import claim
from cfdist.errors import StoppedError, UserError
from cfdist.storage import working_folder


def composed(*settings: str):
    return config.compose_values(*settings)


def interrupted(folder: Path, *settings: str, age: int = 0) -> Path:
    """A run's folder as an interruption leaves it."""
    values = composed(*settings)
    values.output_dir = config.literal(str(folder))
    with claim(folder, OmegaConf.to_yaml(values, resolve=True)):
        (folder / "journal").mkdir()
    then = time.time() - age
    os.utime(folder / "config.yaml", (then, then))
    return folder


def resumed(*settings: str):
    arguments = prepare_arguments(list(settings))
    return run_to_go_on(composed(*settings), config.typed_keys(arguments))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_goes_on_with_its_own_settings(tmp_path):
    folder = interrupted(tmp_path / "a${b}c", "model.batch=16", "dataset.root=x${y}", "eval=guide")
    values = resumed(f"resume={folder}")
    assert (values.model.batch, values.eval.protocol) == (16, "guide")
    written = OmegaConf.to_yaml(values, resolve=True)
    assert written == (folder / "config.yaml").read_text()
    config.load(values, frozenset(["resume"]))
    moved = folder.rename(tmp_path / "moved")
    assert resumed(f"resume={moved}").output_dir == str(moved)
    assert resumed("model.batch=16", "eval=guide", f"resume={moved}", f"output_dir={moved}")
    assert resumed("model.batch=3").model.batch == 3  # no resume


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.batch=4"], "model.batch=16 then, 4 now; leave out what differs"),
        (["model={batch: 4}"], "model.batch=16 then, 4 now"),
        (["model=centerface_pytorch"], "model.name=centerface then, centerface_pytorch now"),
        (["devices=2", "model.nms=null"], "devices=auto then, 2 now, model.nms=0.3 then, null now"),
        (["output_dir=other"], "goes on in its own folder; leave output_dir out"),
    ],
)
def test_what_is_typed_must_agree(tmp_path, settings, message):
    folder = interrupted(tmp_path / "run", "model.batch=16")
    with pytest.raises(UserError, match=message):
        resumed(f"resume={folder}", *settings)


def test_a_secret_is_typed_again(tmp_path):
    root = "dataset.root=s3://key:secret@b/c"
    folder = interrupted(tmp_path / "run", root)
    assert resumed(f"resume={folder}", root).dataset.root == "s3://key:secret@b/c"
    assert ":secret@" not in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"a: [", b"- 1", b"job: evaluate"])
def test_what_is_no_run_is_refused(tmp_path, content):
    (tmp_path / "x").mkdir()
    if content is not None:
        (tmp_path / "x" / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"resume=.*/x: is no run's folder"):
        resumed("resume=x")
    assert going_on(tmp_path / "x") == ""


def test_only_evaluations_and_searches_go_on(tmp_path):
    folder = interrupted(tmp_path / "x", "job=score")
    with pytest.raises(
        UserError, match="job=score cannot go on, only job=evaluate and job=tune can"
    ):
        resumed(f"resume={folder}")


def test_a_search_goes_on_for_as_long_as_is_typed(tmp_path):
    folder = interrupted(tmp_path / "x", "job=tune", "tune.minutes=3", "tune.batches=[1,2]")
    for typed in ((), ("job=tune",)):
        values = resumed(f"resume={folder}", *typed)
        assert (values.job, values.tune.minutes, values.tune.batches) == ("tune", 3, [1, 2])
    assert resumed(f"resume={folder}", "tune.minutes=20").tune.minutes == 20
    with pytest.raises(UserError, match=r"of other settings: tune\.batches=\[1, 2\] then, \[4\]"):
        resumed(f"resume={folder}", "tune.batches=[4]")
    with pytest.raises(UserError, match="of other settings: job=tune then, evaluate now"):
        resumed(f"resume={folder}", "job=evaluate")


@pytest.mark.slow
def test_auto_takes_the_newest_run_of_these_settings(tmp_path):
    outputs = tmp_path / "outputs"
    with pytest.raises(UserError, match=f"no unfinished run in {outputs}; leave resume out"):
        resumed("resume=auto")
    interrupted(outputs / "1", "model.batch=4", age=300)
    interrupted(outputs / "2", "model.batch=4", age=200)
    newest = interrupted(outputs / "3", "model.batch=8", age=100)
    finished = interrupted(outputs / "4", "model.batch=4")
    (finished / "results.json").touch()
    interrupted(outputs / "5", "model.batch=4").joinpath("config.yaml").write_text("a: [")
    assert resumed("resume=auto").output_dir == str(newest)
    assert resumed("resume=auto", "model.batch=4").output_dir == str(outputs / "2")
    assert resumed("resume=auto", "output_dir=outputs/1").output_dir == str(outputs / "1")
    with pytest.raises(UserError, match=r"with these settings.*/3 differs: model.batch=8 then, 5"):
        resumed("resume=auto", "model.batch=5")
    with (
        claim(newest, ""),
        pytest.raises(UserError, match=r"outputs; .*/2 differs: model.batch=4 then, 8 now"),
    ):
        resumed("resume=auto", "model.batch=8")


def test_what_is_shown_may_differ(tmp_path):
    folder = interrupted(tmp_path / "outputs" / "run", "model.batch=16", "quiet=true")
    for resume in (f"resume={folder}", "resume=auto"):
        values = resumed(resume, "quiet=false", "progress=json", "report=false")
        assert (values.model.batch, values.output_dir) == (16, str(folder))
        assert (values.quiet, values.progress, values.report) == (False, "json", False)
    assert resumed(f"resume={folder}").quiet
    assert resumed("resume=auto", "model.batch=16", "verbose=true").model.batch == 16
    begun = sweep(tmp_path / "outputs" / "s", "devices=1,2", "quiet=true", "output_dir=o")
    expected = ["--multirun", "devices=1,2", f"output_dir='{begun}'", "progress='json'"]
    for resume in ("resume=outputs/s", "resume=auto"):
        typed = prepared(resume, "quiet=false", "progress=json", "devices=1,2")
        found = sweep_to_go_on(typed, is_multirun=True)
        assert [one.replace("progress=json", "progress='json'") for one in found] == [
            *expected, "quiet=false"
        ]  # fmt: skip


def unanswered(path):
    raise TimeoutError(errno.ETIMEDOUT, "timed out")


def sweep(folder: Path, *settings: str) -> Path:
    folder.mkdir(parents=True)
    tasks = [one for one in prepared(*settings) if not one.startswith("-")]
    OmegaConf.save({"hydra": {"overrides": {"task": tasks}}}, folder / "multirun.yaml")
    return folder


def prepared(*settings: str) -> list[str]:
    return prepare_arguments(["-m", *settings])


def test_a_sweep_goes_on_with_its_settings_in_their_order(tmp_path):
    folder = sweep(tmp_path / "outputs" / "s", "model.name=b,a", "devices=1,2", "output_dir=o")
    expected = ["--multirun", "model.name='b','a'", "devices=1,2", f"output_dir='{folder}'"]
    assert is_unfinished(folder)
    for typed in (["resume=outputs/s"], ["resume=auto", "devices=1,2", "model.name=b,a"]):
        assert sweep_to_go_on(prepared(*typed), is_multirun=True) == expected
    alone = prepare_arguments(["resume=outputs/s"])
    assert sweep_to_go_on(alone, is_multirun=False) == expected
    with pytest.raises(UserError, match=r"other settings: devices=1,3 is typed, it has model.name"):
        sweep_to_go_on(prepared("resume=outputs/s", "devices=1,3"), is_multirun=True)
    with pytest.raises(UserError, match="no unfinished sweep with these settings"):
        sweep_to_go_on(prepared("resume=auto", "devices=1,2"), is_multirun=True)
    with pytest.raises(UserError, match="holds no sweep; leave -m out"):
        sweep_to_go_on(prepared("resume=outputs"), is_multirun=True)
    (folder / "multirun.yaml").write_text("hydra: 3")
    with pytest.raises(UserError, match=r"its multirun.yaml is damaged"):
        sweep_to_go_on(alone, is_multirun=False)
    (folder / "sweep.csv").touch()
    assert not is_unfinished(folder)


def test_a_finished_sweep_says_how_it_ended(tmp_path, monkeypatch):
    folder = sweep(tmp_path / "s", "devices=1,2")
    alone = prepare_arguments([f"resume={folder}"])
    for codes, code, told in (("0,\n0,\n", 0, "done"), ("0,\n3,\n", 3, "some pictures failed")):
        (folder / "sweep.csv").write_text("exit_code,reason\n" + codes)
        with pytest.raises(StoppedError, match=f"is finished .exit code {code}, {told}") as said:
            sweep_to_go_on(alone, is_multirun=False)
        assert said.value.exit_code == code
    monkeypatch.setattr(resuming, "recorded", unanswered)
    with pytest.raises(UserError, match=r"s: sweep\.csv cannot be read \(timed out\)$"):
        resuming.refuse_finished_sweep(folder)
    with pytest.raises(UserError, match=r"s/0: config\.yaml cannot be read \(timed out\)$"):
        resumed(f"resume={interrupted(folder / '0')}")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (folder / "sweep.csv").write_text("x\n1\n")
    with pytest.raises(UserError, match=r"its sweep\.csv is damaged"):
        sweep_to_go_on(alone, is_multirun=False)


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_sweep_of_which_a_run_has_no_results_goes_on(tmp_path, monkeypatch, is_remote):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = sweep(tmp_path / "s", "devices=1,2")
    name = f"file://{there}" if is_remote else str(there)
    (there / "sweep.csv").write_text("exit_code,reason\n1,no node\n0,\n")
    folder = working_folder(name)
    with pytest.raises(StoppedError, match=r"run again what failed: .* resume="):
        resuming.refuse_finished_sweep(folder)
    arguments = sweep_to_go_on(prepare_arguments([f"resume={name}"]), is_multirun=False)
    assert arguments[:2] == ["--multirun", "devices=1,2"]
    assert [one.name for one in there.iterdir()] == ["multirun.yaml"]  # unfinished
    assert is_unfinished(folder) or is_remote


def test_a_job_that_cannot_go_on_says_so(tmp_path):
    folder = interrupted(tmp_path / "r")
    assert going_on(folder).endswith(" resume=r")
    (folder / "config.yaml").write_text("job: detect\n")
    assert going_on(folder) == "; job=detect begins anew when it is called again"
    (folder / "results.json").touch()
    assert going_on(folder) == going_on(tmp_path) == ""


def test_a_sweep_s_secret_is_typed_again(tmp_path):
    root = "dataset.root=s3://key:hush@b/c"
    folder = sweep(tmp_path / "s", "devices=1,2", "dataset.root=s3://key:***@b/c")
    (typed,) = prepare_arguments([root])
    found = sweep_to_go_on(prepared(f"resume={folder}", root), is_multirun=True)
    assert typed in found


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"file://{tmp_path}/there"


def test_a_run_at_a_uri_goes_on_by_it(uri):
    spool = storage.working_folder(uri)
    interrupted(spool, "model.batch=16", f"output_dir={uri}")
    assert going_on(spool).endswith(f" resume={uri}")
    for resume in (uri, spool):
        values = resumed(f"resume={resume}")
        assert (values.output_dir, values.model.batch) == (uri, 16)
    (spool / "results.json").touch()  # it has not been sent
    assert going_on(spool).endswith(f" resume={uri}")
    spool.rename(spool.parents[2] / "there")
    (spool.parents[2] / "there").rename(uri.removeprefix("file://"))
    assert resumed(f"resume={uri}").model.batch == 16
    with pytest.raises(UserError, match="resume: this URI holds a key"):
        resumed("resume=s3://key:hush@b/c")
    with pytest.raises(UserError, match=r"resume=file:///nowhere: is no run's folder"):
        resumed("resume=file:///nowhere")


def test_auto_names_what_it_looks_at_by_its_uri(uri):
    def refused(*typed: str) -> str:
        with pytest.raises(UserError, match=rf"no unfinished run.* in {uri}") as found:
            resumed("resume=auto", f"output_dir={uri}", *typed)
        return str(found.value)

    assert "spool" not in refused()
    interrupted(storage.working_folder(uri))
    assert f"; {uri} differs: model.batch" in refused("model.batch=3")


def test_a_sweep_at_a_uri_goes_on_by_it(uri):
    spool = sweep(storage.working_folder(uri), "devices=1,2")
    expected = ["--multirun", "devices=1,2", f"output_dir='{uri}'"]
    assert sweep_to_go_on(prepared(f"resume={uri}"), is_multirun=True) == expected
    assert going_on(spool / "0") == ""
    run = interrupted(spool / "0")
    assert going_on(run).endswith(f" resume={uri}")
    (spool / "sweep.csv").touch()  # not sent yet
    assert sweep_to_go_on(prepared(f"resume={uri}"), is_multirun=True) == expected


@pytest.mark.slow
@settings(max_examples=25)
@given(name=st.text("ab /'\"\\$,=*~!;[]{}()é#&\t", min_size=1).filter(lambda text: text.strip("/")))
def test_the_printed_command_names_the_very_folder(name):
    folder = Path("/runs") / name.strip("/")
    *_, last = shlex.split(resuming.command_to_go_on(folder))
    assert config.compose_values(last).resume == str(folder)


@pytest.mark.parametrize(
    ("argv", "script", "words"),
    [
        (["python", "main.py", "a=1"], None, "python main.py"),
        (["python3", "-X", "dev", "my dir/main.py"], None, "python3 -X dev 'my dir/main.py'"),
        (["/v/bin/python", "/v/bin/cfdist", "a=1"], None, "/v/bin/cfdist"),
        (["/c/.venv/bin/python", "/c/main.py"], "./run.sh", "./run.sh"),
    ],
)
def test_the_command_is_the_one_that_was_typed(tmp_path, monkeypatch, argv, script, words):
    monkeypatch.setattr("sys.orig_argv", argv)
    monkeypatch.setattr("sys.argv", [next(a for a in argv if a.endswith(("main.py", "cfdist")))])
    monkeypatch.delenv("CFDIST_COMMAND", raising=False)
    if script:
        monkeypatch.setenv("CFDIST_COMMAND", script)
    folder = interrupted(tmp_path / "outputs" / "1")
    assert going_on(folder) == f"; go on with: {words} resume=outputs/1"
    near = resuming.command_to_go_on(tmp_path / "auto")
    assert near == f"{words} resume={tmp_path / 'auto'}"


def test_the_job_is_no_setting_that_auto_looks_for(tmp_path):
    # As the function `evaluate` has it.
    newest = interrupted(tmp_path / "outputs" / "1", "model.batch=8")
    assert resumed("job=evaluate", "resume=auto").output_dir == str(newest)


def test_a_run_of_a_version_with_fewer_keys_goes_on(tmp_path):
    folder = interrupted(tmp_path / "outputs" / "1", "model.batch=8")
    values = OmegaConf.load(folder / "config.yaml")
    for key in ("log", "download", "objective"):
        del values[key]
    del values.eval["metrics"]
    OmegaConf.save(values, folder / "config.yaml")
    for resume in (f"resume={folder}", "resume=auto"):
        checked = config.load(resumed(resume, "model.batch=8"), frozenset(["resume"]))
        assert (checked.model.batch, checked.eval.metrics, checked.log.mlflow) == (8, [], None)

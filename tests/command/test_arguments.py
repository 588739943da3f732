"""How a command line becomes what Hydra takes."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st

from cfdist import config
from cfdist.command import arguments
from cfdist.command.arguments import (
    Question,
    asked,
    asks_for_multirun,
    prepare_arguments,
    settings_of,
    take_config_folder,
)
from cfdist.config import installation
from cfdist.errors import UserError


def test_the_option_for_a_sweep_may_stand_anywhere():
    settings = ["model.batch=1,2", "devices=2"]
    assert prepare_arguments([settings[0], "-m", settings[1]]) == ["-m", *settings]
    assert prepare_arguments([*settings, "--multirun"]) == ["--multirun", *settings]


@pytest.mark.parametrize(
    "sweep", [["-m"], ["--multirun"], ["experiment=published_table"], ["hydra.mode=MULTIRUN"]]
)
def test_in_a_sweep_commas_stand_between_paths(sweep):
    swept, one = prepare_arguments([*sweep, "model.path=a.onnx,b.onnx", "dataset.root=a (b)"])[-2:]
    assert OverridesParser.create().parse_override(swept).is_sweep_override()
    assert OverridesParser.create().parse_override(one).value() == "a (b)"


@pytest.mark.parametrize(
    ("text", "is_sweep"),
    [
        ("defaults: [published_table]", True),
        ("defaults: [/experiment/published_table, override /backend: simulated]", True),
        ("defaults: [mine]", False),
        ("{defaults: [published_table], hydra: {mode: RUN}}", False),
        ("{defaults: [_self_, published_table], hydra: {mode: RUN}}", True),
        ("{defaults: [two_chips, override /backend: simulated], hydra: {mode: MULTIRUN}}", True),
    ],
)
def test_an_experiment_may_inherit_that_it_is_a_sweep(text, is_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "config_folders", [config.CONFIG_FOLDER, tmp_path])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert asks_for_multirun("experiment=mine") == is_sweep


@pytest.mark.parametrize("arguments", [[], ["experiment=none"], ["experiment="]])
def test_elsewhere_a_comma_belongs_to_the_path(arguments):
    path = prepare_arguments([*arguments, "model.path=a.onnx,b.onnx"])[-1]
    assert OverridesParser.create().parse_override(path).value() == "a.onnx,b.onnx"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--devices", "--devices: no such option; settings are key=value"),
        ("--bs=4", "--bs=4: no such option; settings are key=value; did you mean model.batch=...?"),
        ("=4", "=4: not of the form key=value"),
        ("~model.batch", "~model.batch: no key can be taken away"),
        ("--config-name=x", "--config-name=x: no such option"),
        ("--info", "--info: no such option; settings are key=value; --cfg job shows a run's, "),
        ("-p", "-p: no such option; settings are key=value; --cfg job shows"),
        ("-t", "-t: no such option; settings are key=value, `"),
        ("--seed", "--seed: no such option; settings are key=value, `"),
        ("-o", "-o: no such option; settings are key=value; did you mean output_dir=...?"),
        ("-scx", "-scx: no such option"),
        ("-m=2", "-m=2: no such option"),
        ("hydra.run.dir=X", "hydra.run.dir=X: cfdist sets this itself; output_dir=..."),
        ("hydra.sweep.dir=X", "hydra.sweep.dir=X: cfdist sets this itself"),
        ("+hydra.job.chdir=true", "+hydra.job.chdir=true: cfdist sets this itself"),
        ("++hydra/launcher=joblib", "++hydra/launcher=joblib: cfdist sets this itself"),
        ("hydra={run: {dir: X}}", "hydra={run: {dir: X}}: cfdist sets this itself"),
        ("model@dataset=centerface", "model@dataset=centerface: no such key"),
    ],
)
def test_what_hydra_would_not_explain_is_refused_before(argument, line):
    with pytest.raises(UserError) as refused:
        prepare_arguments([argument])
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        ([], None),
        (["-m", "model.batch=1,2"], None),
        (["--help"], Question("help")),
        (["job=convert", "-h"], Question("help", "convert")),
        (["--help", "job=score"], Question("help", "score")),
        (["--version"], Question("version")),
        (["--cfg", "job"], Question("settings")),
        (["-c=job"], Question("settings")),
    ],
)
def test_what_a_command_line_asks_for(arguments, question):
    assert asked(arguments) == question


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--version", "foo"], "--version: stands alone; leave foo out"),
        (["--version", "job=score"], "--version: stands alone; leave job=score out"),
        (["a=1", "--help", "job=convert"], "--help: stands alone or with job=NAME; leave a=1 out"),
        (["-h", "-m", "--version"], "-h: stands alone or with job=NAME; leave -m --version out"),
    ],
)
def test_a_question_beside_something_else_is_refused(arguments, line):
    with pytest.raises(UserError) as refused:
        asked(arguments)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["model.batch=4", "model.batch=8"], "model.batch: given twice, model.batch=4 and model.b"),
        (["devices=1", "-m", "++devices=2"], "devices: given twice, devices=1 and ++devices=2;"),
        (["backend=torch", "backend=openvino"], "backend: given twice, backend=torch and backend="),
        (["job=score", "job=convert"], "job: given twice"),
        (["-m", "model.batch=1,2", "model.batch=1,4"], "model.batch: given twice"),
        (["model={batch: 4}", "model.batch=8"], "model.batch: given twice, model={batch: 4} and"),
        (["model.mean=[1,2,3]", "model.mean=[1,2,4]"], "model.mean: given twice"),
        (["predictions=a", "predictions='b'"], "predictions: given twice, predictions=a and"),
        (["dataset.limit=1", "dataset.limit=true"], "dataset.limit: given twice"),
        (["experiment=published_table", "experiment=null"], "experiment: given twice"),
        (["hydra.mode=RUN", "hydra.mode=MULTIRUN"], "hydra.mode: given twice"),
    ],
)
def test_a_key_with_two_values_is_refused(arguments, line):
    with pytest.raises(UserError) as refused:
        prepare_arguments(arguments)
    assert str(refused.value).startswith(line)
    assert str(refused.value).endswith("; leave one out")


@pytest.mark.parametrize(
    "arguments",
    [
        ["model.batch=4", "+model.batch=4"],
        ["predictions=a", "predictions='a'"],
        ["experiment=published_table", "model.batch=8"],
        ["model=centerface", "model.name=mine", "model={batch: 4, expected: {easy: 1}}"],
        ["model.expected={easy: 1}", "model.expected={hard: 1}"],
    ],
)
def test_a_key_may_be_said_again_and_a_preset_overridden(arguments):
    assert len(prepare_arguments(arguments)) == len(arguments)


def test_the_settings_that_are_shown():
    assert settings_of(["--cfg", "job", "model.batch=4"]) == ["model.batch=4"]
    assert settings_of(["model.batch=4", "--cfg=job"]) == ["model.batch=4"]
    for wrong in (["--cfg", "hydra"], ["--cfg=all"], ["-c"], ["-m", "--cfg", "job"]):
        with pytest.raises(UserError, match=r"^--cfg"):
            settings_of(wrong)


@pytest.mark.parametrize(
    ("typed", "prepared"),
    [
        ("[--precision_mode=force_fp16]", "['--precision_mode=force_fp16']"),
        ("[--a=b,--c=d e,f]", "['--a=b','--c=d e,f']"),
        ("['--a=x', \"--b\"]", "['--a=x', \"--b\"]"),
        ("[]", "[]"),
        ("--a=b", "'--a=b'"),
        ("[--a=b],[--c={d}]", "['--a=b'],['--c={d}']"),
    ],
)
@pytest.mark.parametrize("key", ["convert.extra", "infer.cli_args"])
def test_a_tools_options_need_no_quotes(key, typed, prepared):
    assert prepare_arguments([f"{key}={typed}"]) == [f"{key}={prepared}"]


options = st.from_regex(r"--[a-z_]{1,8}=[a-z0-9:;{}$ /.\\=]{0,9}[a-z0-9]", fullmatch=True)


@pytest.mark.slow
@given(st.lists(options, max_size=3))
def test_a_tools_options_arrive_as_they_were_typed(compose, typed):
    (argument,) = prepare_arguments([f"convert.extra=[{','.join(typed)}]"])
    assert compose(argument).convert.extra == typed


def test_the_choices_of_another_folder_are_those_of_a_run_too(tmp_path, monkeypatch):
    folders = [config.CONFIG_FOLDER]
    monkeypatch.setattr(installation, "config_folders", folders)
    monkeypatch.setattr(arguments, "config_folders", folders)
    (tmp_path / "a b" / "model").mkdir(parents=True)
    (tmp_path / "a b" / "model" / "mine.yaml").write_text("defaults: [centerface]\nname: mine\n")
    for typed in (["--config-dir", str(tmp_path / "a b")], [f"-cd={tmp_path / 'a b'}"]):
        rest = take_config_folder([*typed, "model=mine", "model.batch=4"])
        assert rest == ["model=mine", "model.batch=4"]
        found = config.compose(*prepare_arguments(rest)).model
        assert (found.name, found.batch, found.color) == ("mine", 4, "RGB")
    with pytest.raises(HydraException) as refused:
        config.compose(*prepare_arguments(["model=mien"]))
    assert config.one_line(refused.value).endswith("centerface_pytorch, mine; did you mean mine?")


@pytest.mark.parametrize("typed", [["--config-dir"], ["--config-dir=nowhere"], ["-cd", "nowhere"]])
def test_another_folder_has_to_be_there(typed):
    with pytest.raises(UserError, match=r"^--config-dir=(nowhere)?: no such folder; name one"):
        take_config_folder(typed)


def test_another_folder_without_groups_would_have_no_effect(tmp_path):
    (tmp_path / "model.yaml").touch()
    with pytest.raises(UserError, match="holds no group that can be read"):
        take_config_folder([f"--config-dir={tmp_path}"])


@pytest.mark.parametrize("name", ["hydra/sweeper/mine.yaml", "experiment/team/x.yaml"])
def test_another_folder_may_hold_groups_inside_of_groups_only(name, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "config_folders", [config.CONFIG_FOLDER])
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert take_config_folder([f"--config-dir={tmp_path}"]) == []


@pytest.mark.parametrize(
    ("typed", "shell"),
    [(["-sc", "install=zsh"], "zsh"), (["--shell-completion=install=zsh"], "zsh"), (["-sc"], "")],
)
def test_a_shell_may_be_named_for_completion(typed, shell):
    assert asked(typed) == Question("completion", shell)
    with pytest.raises(UserError, match="stands alone; leave devices=2 out"):
        asked(["devices=2", *typed])


def test_a_sweeper_may_be_chosen_and_set():
    arguments = [
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra/sweeper/sampler=x",
    ]
    assert prepare_arguments(arguments) == arguments

"""How a command line becomes what Hydra takes."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from cfdist.command.arguments import prepare_arguments
from cfdist.errors import UserError


def value_of(argument: str) -> object:
    """The value that Hydra gets from a prepared argument."""
    (prepared,) = prepare_arguments([argument])
    return OverridesParser.create().parse_override(prepared).value()


def test_the_option_for_a_sweep_may_stand_anywhere():
    settings = ["model.batch=1,2", "devices=2"]
    assert prepare_arguments([settings[0], "-m", settings[1]]) == ["-m", *settings]
    assert prepare_arguments([*settings, "--multirun"]) == ["--multirun", *settings]


@pytest.mark.parametrize(
    "sweep", [["-m"], ["--multirun"], ["experiment=published_table"], ["hydra.mode=MULTIRUN"]]
)
def test_a_sweep_over_paths_is_left_to_hydra_and_one_path_is_not(sweep):
    swept, one = prepare_arguments([*sweep, "model.path=a.onnx,b.onnx", "dataset.root=a (b)"])[-2:]
    assert OverridesParser.create().parse_override(swept).is_sweep_override()
    assert OverridesParser.create().parse_override(one).value() == "a (b)"


@pytest.mark.parametrize("arguments", [[], ["experiment=none"], ["experiment="]])
def test_elsewhere_a_comma_belongs_to_the_path(arguments):
    path = prepare_arguments([*arguments, "model.path=a.onnx,b.onnx"])[-1]
    assert OverridesParser.create().parse_override(path).value() == "a.onnx,b.onnx"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_a_path_needs_no_quotes_whatever_is_in_it(path):
    if path.casefold() == "null" or (path[0] == path[-1] and path[0] in "'\""):
        return  # no path, or quoted by the person
    assert value_of(f"dataset.root={path}") == path


@pytest.mark.parametrize("path", ["~/runs", "2024", "007", "1e3", "true", "a b", "a'b", "a\\'b"])
def test_a_path_stays_as_it_was_typed(path):
    assert value_of(f"output_dir={path}") == path


def test_null_is_no_path_and_quotes_are_the_person_s():
    assert value_of("dataset.root=null") is None
    assert value_of("dataset.root='a b'") == "a b"
    assert value_of('dataset.root="null"') == "null"


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--devices", "--devices: no such option; settings are key=value"),
        ("=4", "=4: not of the form key=value"),
        ("~model.batch", "~model.batch: no key can be taken away"),
    ],
)
def test_what_hydra_would_not_explain_is_refused_before(argument, line):
    with pytest.raises(UserError) as refused:
        prepare_arguments([argument])
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    ("argument", "prepared"),
    [
        ("eval=null", "eval='null'"),
        ("backend=om,1", "backend='om','1'"),
        ("+experiment=[1]", "+experiment=['1']"),
        ("backend=choice(om,torch)", "backend=choice('om','torch')"),
        ("experiment=null", "experiment=[]"),
        ("experiment=Null,published_table", "experiment=[],'published_table'"),
        ("model={batch: 1}", "model={batch: 1}"),
        ("model.batch=1,2", "model.batch=1,2"),
    ],
)
def test_choices_of_a_group_are_names(argument, prepared):
    assert prepare_arguments([argument])[-1] == prepared


@pytest.mark.parametrize(
    ("typed", "prepared"),
    [
        ("[--precision_mode=force_fp16]", "['--precision_mode=force_fp16']"),
        ("[--a=b,--c=d e,f]", "['--a=b','--c=d e,f']"),
        ("[--a='x', \"--b\"]", "[--a='x', \"--b\"]"),
        ("[]", "[]"),
        ("--a=b", "'--a=b'"),
        ("[--a=b],[--c={d}]", "['--a=b'],['--c={d}']"),
    ],
)
@pytest.mark.parametrize("key", ["convert.extra", "infer.cli_args"])
def test_a_tools_options_need_no_quotes(key, typed, prepared):
    assert prepare_arguments([f"{key}={typed}"]) == [f"{key}={prepared}"]


options = st.from_regex(r"--[a-z_]{1,8}=[a-z0-9:;{}$ /.\\=]{0,9}[a-z0-9]", fullmatch=True)


@given(st.lists(options, max_size=3))
def test_a_tools_options_arrive_as_they_were_typed(compose, typed):
    (argument,) = prepare_arguments([f"convert.extra=[{','.join(typed)}]"])
    assert compose(argument).convert.extra == typed

"""How a command line becomes what Hydra takes."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cfdist.command.arguments import prepare_arguments
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


@pytest.mark.parametrize("arguments", [[], ["experiment=none"], ["experiment="]])
def test_elsewhere_a_comma_belongs_to_the_path(arguments):
    path = prepare_arguments([*arguments, "model.path=a.onnx,b.onnx"])[-1]
    assert OverridesParser.create().parse_override(path).value() == "a.onnx,b.onnx"


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

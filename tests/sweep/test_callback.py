"""What Hydra hands to a sweep, and how a command line is known to be one."""

from __future__ import annotations

import errno
import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cfdist import cli
from cfdist.sweep import callback
from cfdist.sweep.callback import SweepSummary, overrides_by_key


def test_overrides_are_read_as_a_person_would_write_them():
    overrides = (
        "model.batch=4",
        "dataset=wider_val",
        "dataset.root='/a b/c=d'",
        "model.nms=null",
        "eval.gate=true",
        "devices=[0,1]",
        "+experiment=published_table",
    )
    assert overrides_by_key(overrides) == {
        "model.batch": "4",
        "dataset": "wider_val",
        "dataset.root": "/a b/c=d",
        "model.nms": "null",
        "eval.gate": "true",
        "devices": "[0, 1]",
        "experiment": "published_table",
    }


@pytest.mark.parametrize(
    "sweep", [["-m"], ["--multirun"], ["experiment=published_table"], ["hydra.mode=MULTIRUN"]]
)
def test_a_sweep_over_paths_is_left_to_hydra_and_one_path_is_not(sweep):
    swept, one = cli.prepare_arguments([*sweep, "model.path=a.onnx,b.onnx", "dataset.root=a (b)"])[
        -2:
    ]
    assert OverridesParser.create().parse_override(swept).is_sweep_override()
    assert OverridesParser.create().parse_override(one).value() == "a (b)"


@pytest.mark.parametrize("arguments", [[], ["experiment=none"], ["experiment="]])
def test_elsewhere_a_comma_belongs_to_the_path(arguments):
    path = cli.prepare_arguments([*arguments, "model.path=a.onnx,b.onnx"])[-1]
    assert OverridesParser.create().parse_override(path).value() == "a.onnx,b.onnx"


def test_a_home_folder_needs_no_quotes():
    (argument,) = cli.prepare_arguments(["output_dir=~/runs"])
    assert OverridesParser.create().parse_override(argument).value() == "~/runs"


def test_a_folder_that_cannot_be_looked_at_ends_the_command(monkeypatch, tmp_path, capsys):
    def unreadable(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(callback, "claim_sweep", unreadable)
    config = OmegaConf.create({"output_dir": "there", "hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as end:
        SweepSummary().on_multirun_start(config)
    assert end.value.code == cli.EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cfdist: {tmp_path}: Permission denied; ")
    assert line.endswith("choose another output_dir")


def test_a_summary_that_cannot_be_made_ends_the_command(monkeypatch, tmp_path, capsys):
    # Hydra would warn and end with 0.
    lost = cli.Outcome(0, ("model.batch=4",), tmp_path / "0", 0)
    monkeypatch.setattr(cli, "outcomes", [lost])
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as end:
        SweepSummary().on_multirun_end(config)
    assert end.value.code == cli.EXIT_INTERNAL
    (line,) = capsys.readouterr().err.splitlines()
    assert "no summary of the sweep" in line
    assert "results.json" in line

"""What Hydra hands to a sweep, and how a command line is known to be one."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from cfdist.command import cli
from cfdist.distributed import session
from cfdist.errors import ExitCode
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


def test_a_folder_that_cannot_be_looked_at_ends_the_command(monkeypatch, tmp_path, capsys):
    def unreadable(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(callback, "claim_sweep", unreadable)
    config = OmegaConf.create({"output_dir": "there", "hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as end:
        SweepSummary().on_multirun_start(config)
    assert end.value.code == ExitCode.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cfdist: {tmp_path}: Permission denied; see ")
    assert line.endswith("choose another output_dir")


def started(monkeypatch, tmp_path, **params):
    """What a sweep over a preset's values has as them once it has started."""
    monkeypatch.setattr(callback, "claim_sweep", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr(cli, "held", contextlib.ExitStack())
    monkeypatch.setattr(session, "share_sessions", lambda: None)
    hydra = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"params": params}}
    config = OmegaConf.create({"output_dir": "there", "hydra": hydra})
    SweepSummary().on_multirun_start(config)
    return OmegaConf.to_container(config.hydra.sweeper.params, resolve=True)


def test_the_texts_of_a_preset_s_sweep_stay_as_they_are_written(monkeypatch, tmp_path):
    values = {"predictions": "2024_06_14,a b", "model.batch": "1,4", "dataset.limit": 3}
    assert started(monkeypatch, tmp_path, **values) == {
        "predictions": "'2024_06_14','a b'",
        "model.batch": "1,4",
        "dataset.limit": 3,
    }


def test_a_number_in_place_of_a_text_in_a_preset_s_sweep_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        started(monkeypatch, tmp_path, predictions=20240614)
    assert end.value.code == ExitCode.BAD_INPUT
    assert (
        "hydra.sweeper.params.predictions=20240614: must be text; put it" in capsys.readouterr().err
    )


def test_hydra_s_record_of_a_sweep_keeps_no_secret(tmp_path):
    record = tmp_path / "multirun.yaml"
    hydra = {"sweep": {"dir": str(tmp_path)}, "mode": RunMode.MULTIRUN}
    config = OmegaConf.create({"hydra": hydra, "root": "s3://key:hush@b/c"})
    SweepSummary().on_job_start(config)  # nothing is there
    assert not record.exists()
    OmegaConf.save(config, record)
    SweepSummary().on_job_start(config)
    assert "s3://key:***@b/c" in record.read_text()
    assert "hush" not in record.read_text()


def test_a_sweep_without_a_run_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "outcomes", [])
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as end:
        SweepSummary().on_multirun_end(config)
    assert end.value.code == ExitCode.BAD_INPUT
    assert capsys.readouterr().err.startswith("cfdist: a sweep without a run: ")


def test_a_summary_that_cannot_be_made_ends_the_command(monkeypatch, tmp_path, capsys):
    # Hydra would warn and end with 0.
    lost = cli.JobOutcome(("model.batch=4",), tmp_path / "0", 0)
    monkeypatch.setattr(cli, "outcomes", [lost])
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as end:
        SweepSummary().on_multirun_end(config)
    assert end.value.code == ExitCode.INTERNAL
    (line,) = capsys.readouterr().err.splitlines()
    assert "no summary of the sweep" in line
    assert "results.json" in line

"""What goes to MLflow, Weights & Biases and TensorBoard, read back from their local stores."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from cfdist import storage, trackers
from cfdist.config import LogConfig
from cfdist.errors import UserError

RESULTS = {
    "ap": {"official": {"easy": 0.9, "hard": 0.5}},
    "throughput": {"steady": None, "end_to_end": 12.5},
    "seconds": {"total": 4.0},
    "pictures": {"total": 8, "done": 8, "failed": 0},
    "config": {"job": "evaluate", "model": {"batch": 4, "mean": [0.0, 1.0]}},
    "backend": "openvino",
    "simulated": False,
    "fingerprint": "ab12",
    "provenance": {"host": "here", "commit": None},
}
FIGURES = {
    "ap/official/easy": 0.9,
    "ap/official/hard": 0.5,
    "throughput/end_to_end": 12.5,
    "seconds/total": 4.0,
    "pictures/total": 8.0,
    "pictures/done": 8.0,
    "pictures/failed": 0.0,
}


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "sweep" / "3"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "config.yaml").write_text("job: evaluate\n")
    cv2.imwrite(str(folder / "curve.png"), np.full((4, 6, 3), 200, np.uint8))
    return folder


def test_figures_and_settings_are_flat():
    assert trackers.figures(RESULTS) == FIGURES
    assert trackers.settings(RESULTS) == {
        "job": "evaluate",
        "model.batch": 4,
        "model.mean": [0.0, 1.0],
        "backend": "openvino",
        "simulated": False,
        "fingerprint": "ab12",
        "test": None,  # of an earlier version
    }


def test_a_missing_package_is_told_before_the_run(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.check_trackers(LogConfig())
    with pytest.raises(UserError, match=r"^log\.wandb=faces: .*`pip install wandb`"):
        trackers.check_trackers(LogConfig(wandb="faces"))


def test_an_mlflow_that_cannot_be_used_is_told_before_the_run(monkeypatch):
    answers = {"folder": ValueError("no folders.\nSee there"), "http://late": None}
    asked = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            self.uri = tracking_uri

        def get_experiment_by_name(self, name: str) -> None:
            asked.append((self.uri, os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]))
            if answers[self.uri]:
                raise answers[self.uri]

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    with pytest.raises(UserError, match=r"^log\.mlflow=folder: cannot be used \(no folders\);"):
        trackers.check_trackers(LogConfig(mlflow="folder"))
    for _ in range(2):  # two runs of a sweep
        trackers.check_trackers(LogConfig(mlflow="http://late"))
    assert asked == [("folder", "0"), ("http://late", "0")]


def test_a_tracker_that_fails_fails_no_run(monkeypatch, output, capsys):
    def fail(*_):
        raise ConnectionError("no\nanswer")

    seen = []
    loggers = {"mlflow": fail, "tensorboard": lambda *given: seen.append(given)}
    monkeypatch.setattr(trackers, "_LOGGERS", loggers)
    trackers.track(LogConfig(mlflow="http://nowhere", tensorboard="t"), output)
    assert capsys.readouterr().out == (
        "note: log.mlflow=http://nowhere: nothing logged: no answer\n"
    )
    assert seen == [("t", RESULTS, output)]


@pytest.mark.slow
def test_tensorboard_gets_scalars_settings_and_plots(output, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  # the format's own module

    trackers.track(LogConfig(tensorboard=str(tmp_path / "board")), output)
    (file,) = (tmp_path / "board" / "sweep" / "3").glob("events.*")
    content, at, scalars, tags = file.read_bytes(), 0, {}, set()
    while at < len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            tags.add(value.tag)
            if value.HasField("simple_value"):
                scalars[value.tag] = value.simple_value
    assert scalars == pytest.approx(FIGURES)
    assert {"curve", "settings/text_summary"} <= tags


@pytest.mark.slow
def test_mlflow_gets_metrics_parameters_and_files(output, tmp_path, monkeypatch):
    # Of the local stores only that of files needs no database.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = (tmp_path / "runs").as_uri()
    trackers.track(LogConfig(mlflow=uri), output)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("cfdist")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "sweep/3"
    assert run.data.metrics == FIGURES
    assert run.data.params["model.batch"] == "4"
    assert run.data.tags["host"] == "here"
    names = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert names == {"results.json", "config.yaml", "curve.png"}


def test_wandb_writes_an_offline_run(output, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.track(LogConfig(wandb="faces"), output)
    (run,) = (output / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    # Records lie in blocks of 32 kB, each piece of a record behind a header of 7 bytes.
    content = file.read_bytes()
    content = b"".join(content[at + 7 : at + 32768] for at in range(0, len(content), 32768))
    for text in (b"ap/official/hard", b"model.batch", b"sweep/3", b"results.json"):
        assert text in content


def test_a_folder_that_cannot_be_made_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: package)
    trackers.check_trackers(LogConfig(tensorboard=str(tmp_path / "new" / "board")))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match="file/board"):
        trackers.check_trackers(LogConfig(tensorboard=str(tmp_path / "file" / "board")))


def test_a_run_behind_a_uri_has_its_name():
    folder = storage.working_folder("s3://bucket/runs/a")
    assert trackers._name(folder) == "a"
    assert trackers._name(folder / "3") == "a/3"


@pytest.mark.slow
def test_mlflow_leaves_its_callers_experiment(output, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = (tmp_path / "runs").as_uri()
    mlflow.set_tracking_uri(uri)
    own = mlflow.set_experiment("own")
    for _ in range(2):
        trackers.track(LogConfig(mlflow=uri), output)
    with mlflow.start_run() as run:
        assert run.info.experiment_id == own.experiment_id
    experiment = mlflow.get_experiment_by_name("cfdist")
    assert len(mlflow.MlflowClient(uri).search_runs([experiment.experiment_id])) == 2

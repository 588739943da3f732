"""What a person gets wrong on the command line: one line, exit code 2, before Ray starts."""

from __future__ import annotations

import re
import shutil

import pytest

from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(scope="module")
def sample():
    return ensure_sample(SAMPLE_FOLDER)


def assert_refused(result, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"(starting job=\w+ \.\.\.\n)?", result.stdout)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("cfdist: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # One of each kind: tests/config/test_messages.py has them all.
        (["devices=0"], ["devices=0: must be auto, a whole number from 1 to 1024 or a list"]),
        (["modle.batch=4"], ["modle.batch: no such key; did you mean model.batch?"]),
        (["+anything=4"], ["anything: no such key", "--help"]),
        (["model.batch=1,2"], ["model.batch=1,2: several values; for a run of each add -m"]),
        (["output_dir="], ["output_dir: must not be empty"]),
        (["-m", "output_dir=", "model.batch=1,2"], ["output_dir: must not be empty"]),
        (["--devices", "2"], ["--devices: no such option"]),
        (["batch"], ["batch: not of the form key=value"]),
        (["backend=tensorrt"], ["backend=tensorrt: no such choice", "openvino"]),
        (["eval=null"], ["eval=null: no such choice", "guide, official"]),
        (["-m", "dataset=sample,null"], ["dataset=null", "no such choice"]),
        (["experiment="], ["experiment=", "no such choice", "published_table"]),
        (["experiment=nosuch"], ["experiment=nosuch", "no such choice", "published_table"]),
        # No experiment is what a command has anyway: what is wrong is the next setting.
        (["experiment=null", "model.batch=0"], ["model.batch=0"]),
        (["-m", "experiment=null", "model.batch=0"], ["model.batch=0"]),
        (["experiment=published_table", "experiment=null"], ["experiment: given twice"]),
        (
            ["model.batch=1024", "model.height=8192", "model.width=8192"],
            ["model.batch=1024", "GB of memory", "GB are free; choose"],
        ),
        (["dataset.ground_truth=gt"], ["add dataset=wider_val"]),
        (["dataset=wider_val"], ["dataset.ground_truth: not given"]),
        (["model=centerface_pytorch"], ["model.path", "comes without weights"]),
        (["model.path=none.onnx"], ["none.onnx", "does not exist"]),
        (["job=score"], ["predictions: not given"]),
        (["job=score", "predictions=nowhere"], ["nowhere"]),
        (["job=score", "predictions=a 'b' =(c"], ["a 'b' =(c"]),
        (["backend=onnxruntime", "backend.providers=[NoProvider]"], ["'NoProvider'"]),
        (
            ["backend=onnxruntime", "backend.provider_options={use_arena:1}"],
            ["'use_arena' is no option of CPUExecutionProvider"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_settings(command, arguments, words):
    assert_refused(command(*arguments), *words)


def test_pictures_that_are_not_there(command, tmp_path, sample):
    truth = f"dataset.ground_truth={sample.ground_truth}"
    result = command("dataset=wider_val", "dataset.root=nowhere", truth)
    assert_refused(result, "dataset.root=nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    result = command("dataset=wider_val", "dataset.root=empty", truth)
    assert_refused(result, "dataset.root=empty", "none of the ground truth's")
    assert_refused(command("dataset=wider_val", truth), "dataset.root: not given")


def test_a_ground_truth_folder_without_one_of_its_files(command, tmp_path, sample):
    folder = tmp_path / "gt"
    shutil.copytree(sample.ground_truth, folder)
    (folder / "wider_medium_val.mat").unlink()
    result = command(
        "dataset=wider_val", f"dataset.root={sample.root}", f"dataset.ground_truth={folder}"
    )
    assert_refused(result, "wider_medium_val.mat")


def test_model_files_that_are_none(command, tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"no network")
    assert_refused(command("model.path=junk.onnx"), "junk.onnx", "not a valid ONNX file")
    assert_refused(
        command("model.path=junk.onnx", f"model.sha256={'0' * 64}"), "junk.onnx", "expected 0000"
    )
    assert_refused(command("model.weights.path=junk.onnx"), "10 bytes, expected 7304518")


def test_a_finished_run_is_never_overwritten(command, tmp_path):
    results = tmp_path / "done" / "results.json"
    results.parent.mkdir()
    results.write_text("{}")
    assert_refused(command("output_dir=done"), "output_dir=", "holds a finished run")
    assert results.read_text() == "{}"


def test_an_output_folder_that_cannot_be(command, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(command("output_dir=file"), "output_dir=", "cannot be made")
    assert_refused(command("output_dir=/proc/nowhere"), "/proc/nowhere", "cannot be made")


def test_a_stranger_s_folder_is_left_alone(command, tmp_path):
    mine = tmp_path / "d" / "predictions" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert_refused(command("output_dir=d"), "holds 'predictions'", "choose another")
    assert mine.read_text() == "mine"


def test_a_folder_in_use_is_refused(command, tmp_path):
    from cfdist.command.run_folder import claim

    with claim(tmp_path / "busy", "job: evaluate"):
        assert_refused(command("output_dir=busy"), "another run is using it")


def test_a_refused_run_leaves_no_folder(command, tmp_path):
    assert_refused(command("backend.providers=[No]", "backend=onnxruntime"), "'No'")
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_does_not_answer(command):
    result = command("job=quantize", "cluster.address=127.0.0.1:1")  # before it calibrates
    assert_refused(result, "cluster.address=127.0.0.1:1", "no Ray cluster answers")


def test_help_explains_every_key(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = command("--help")
    assert result.returncode == 0
    assert "model.batch            pictures a batch [a whole number from 1 to 1024; default 1]" in (
        result.stdout
    )
    assert "\n  5    eval.gate missed\n" in result.stdout
    assert "$" not in result.stdout

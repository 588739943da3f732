"""`job=benchmark`: three parts, one table, one JSON; nothing else is left."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from cfdist import execution
from cfdist.backends.simulated import batch_milliseconds
from cfdist.errors import UserError
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from cfdist.throughput import whole
from cfdist.widerface.ground_truth import load_ground_truth
from jobs import benchmark
from tests.fakes.ascend import install_atc, install_double, install_npu_smi

SIZE = ("model.height=256", "model.width=256")
SHORT = "benchmark.min_seconds=0"
RATES = ("pictures", "steady_pictures_per_second", "end_to_end_pictures_per_second",
         "cpu_ms_per_picture")  # fmt: skip
STATISTICS = ("min", "mean", "median", "p99", "max")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def run(compose, folder: Path, *overrides: str) -> tuple[int, dict]:
    """The job in this process: exit code and results."""
    folder.mkdir(parents=True, exist_ok=True)
    code = benchmark.main(compose("job=benchmark", *overrides), folder, time.time())
    return code, read(folder)


def test_devices_that_are_too_many_are_refused_before_the_host_is_measured(compose, monkeypatch):
    monkeypatch.setattr(benchmark, "_measure_host", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="devices=999: these devices share"):
        run(compose, Path(), "devices=999", "backend=onnxruntime")


def test_the_command_on_the_sample_set(command, tmp_path):
    done = command(
        "job=benchmark", "model.batch=2", "devices=2", *SIZE, "benchmark.loops=3",
        "benchmark.pictures=80", "pipeline.readers=3", "output_dir=out", SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("inference alone", "host alone", "end to end", "bound the run", "69 pictures"):
        assert words in done.stdout
    assert "SIMULATED" not in done.stdout
    results = read(tmp_path / "out")
    assert results["job"] == "benchmark"
    assert results["ap"] == {}
    assert results["simulated"] is False
    assert results["pictures"] == {"total": 69, "done": 69, "failed": 0}
    section = results["benchmark"]

    inference = section["inference"]
    assert (inference["loops"], inference["input"]) == (3, "zeros")
    assert "3 batches of zeros in each stream" in done.stdout
    assert [device["name"] for device in inference["devices"]] == ["device:0", "device:1"]
    rates = [device["pictures_per_second"] for device in inference["devices"]]
    assert inference["pictures_per_second"] == pytest.approx(sum(rates))
    assert results["throughput"]["pure_inference"] == inference["pictures_per_second"]
    for device in inference["devices"]:
        low, mean, median, p99, high = (device["batch_ms"][name] for name in STATISTICS)
        assert 0 < low <= min(mean, median) <= max(mean, median) <= p99 <= high
        assert device["device_ms"] is None

    counts = [rate["readers"] for rate in section["host"]]
    assert counts == sorted(counts)
    assert set(counts) >= {1, 6}  # what two devices of three have is among them
    for rate in section["host"]:
        assert rate["pictures"] >= 80
        assert rate["pictures_per_second"] > 0
        assert rate["cpu_ms_per_picture"] > 0

    whole = section["end_to_end"]
    assert set(whole) == set(RATES)
    assert whole["pictures"] == 80 == sum(device["pictures"] for device in results["devices"])
    # Inference is in it, and in nothing but the processes of Ray.
    assert whole["cpu_ms_per_picture"] > max(r["cpu_ms_per_picture"] for r in section["host"])
    assert results["throughput"]["end_to_end"] == whole["end_to_end_pictures_per_second"] > 0
    seconds = results["seconds"]
    # The rate is by the whole command's time but for the other two parts.
    alone = seconds["total"] - seconds["host"] - seconds["inference"]
    assert 80 / whole["end_to_end_pictures_per_second"] == pytest.approx(alone, rel=1e-6)

    bound = section["bound"]
    assert bound["bound_by"] in ("devices", "host")
    assert bound["devices_pictures_per_second"] == inference["pictures_per_second"]
    assert bound["shared_cores_pictures_per_second"] < inference["pictures_per_second"]
    left = {path.name for path in (tmp_path / "out").iterdir()} - {".lock", "run.log"}
    assert left == {"config.yaml", "results.json", "report.html"}


@pytest.mark.usefixtures("kept_processes")
def test_a_simulated_benchmark_is_marked(compose, tmp_path, capsys):
    code, results = run(
        compose, tmp_path, "backend=simulated", "model.path=nowhere.onnx", "model.batch=4",
        "devices=2", *SIZE, "benchmark.loops=4", "benchmark.pictures=40", SHORT,
    )  # fmt: skip
    assert code == 0
    assert results["simulated"] is True
    assert results["model"] is None
    assert results["ap"] == {}
    section = results["benchmark"]
    latency = batch_milliseconds(4, {"latency_ms": None, "preset": "310P3"})
    for device in section["inference"]["devices"]:
        assert device["batch_ms"]["min"] >= device["device_ms"]["min"] >= latency
    assert section["inference"]["pictures_per_second"] <= 2 * 4 / latency * 1000
    assert section["bound"]["shared_cores_pictures_per_second"] is None
    screen = capsys.readouterr().out
    assert "SIMULATED benchmark" in screen
    assert "simulated devices can take" in screen


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
@pytest.mark.usefixtures("kept_processes")
def test_other_backends(compose, tmp_path, backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    _, results = run(
        compose, tmp_path, f"backend={backend}", *SIZE, "benchmark.loops=2", "dataset.limit=8",
        "benchmark.pictures=8", "benchmark.input=random", "benchmark.parts=[inference,end_to_end]",
        SHORT,
    )  # fmt: skip
    assert results["backend"] == backend
    assert results["throughput"]["pure_inference"] > 0
    assert results["benchmark"]["host"] is None
    assert results["benchmark"]["bound"] is None
    assert results["benchmark"]["end_to_end"]["pictures"] == 8


def test_the_host_alone_needs_neither_ray_nor_a_model(compose, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "start", lambda *_: pytest.fail("Ray was started"))
    code, results = run(
        compose, tmp_path, "benchmark.parts=[host]", "model=centerface_pytorch",
        "benchmark.readers=[2,1]", "benchmark.pictures=5", SHORT,
    )  # fmt: skip
    assert code == 0
    assert [rate["readers"] for rate in results["benchmark"]["host"]] == [2, 1]
    assert results["backend"] is results["model"] is results["batch"] is None
    assert results["benchmark"]["inference"] is results["benchmark"]["end_to_end"] is None
    assert results["pictures"] == {"total": 5, "done": 5, "failed": 0}
    assert results["throughput"] == {"steady": None, "end_to_end": None, "pure_inference": None}


@pytest.mark.usefixtures("kept_processes")
def test_inference_alone_needs_no_pictures(compose, tmp_path):
    code, results = run(
        compose, tmp_path, "benchmark.parts=[inference]", "dataset=wider_val", *SIZE,
        "benchmark.loops=1", SHORT,
    )  # fmt: skip
    assert code == 0
    assert results["throughput"]["pure_inference"] > 0
    assert results["pictures"] == {"total": 0, "done": 0, "failed": 0}
    assert results["devices"] == []


@pytest.mark.usefixtures("kept_processes")
def test_a_broken_picture_is_listed_once(compose, tmp_path):
    sample = ensure_sample(SAMPLE_FOLDER)
    ids = list(load_ground_truth(sample.ground_truth))[:3]
    for id in ids:
        path = tmp_path / "root" / "images" / f"{id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.root / "WIDER_val" / "images" / f"{id}.jpg", path)
    path.write_bytes(b"no picture")
    data = (
        "dataset=wider_val", f"dataset.root={tmp_path / 'root'}",
        f"dataset.ground_truth={sample.ground_truth}", "benchmark.pictures=7",
    )  # fmt: skip
    code, results = run(
        compose, tmp_path / "out", *data, *SIZE, "benchmark.parts=[host,end_to_end]",
        "dataset.repeat=2", SHORT,
    )  # fmt: skip
    assert code == 3
    assert [failure["picture"] for failure in results["failures"]] == [ids[2]]
    assert results["pictures"] == {"total": 3, "done": 2, "failed": 1}
    assert results["benchmark"]["end_to_end"]["pictures"] == 14

    for id in ids:
        (tmp_path / "root" / "images" / f"{id}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 3 pictures can be read"):
        run(compose, tmp_path / "none", *data, "benchmark.parts=[host]")


def test_two_chips(command, tmp_path, monkeypatch):
    install_double(monkeypatch)
    install_atc(monkeypatch, tmp_path / "bin")
    install_npu_smi(monkeypatch, tmp_path / "bin")
    done = command("job=convert", "convert.output=om", "convert.batches=[2]", *SIZE)
    assert done.returncode == 0, done.stderr
    done = command(
        "job=benchmark", "model.path=om/centerface_bs{batch}.om", "model.batch=2", *SIZE,
        "benchmark.loops=4", "benchmark.pictures=9", "cluster.dashboard=false", "output_dir=out",
        SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / "out")
    assert results["backend"] == "om"
    devices = results["benchmark"]["inference"]["devices"]
    assert [device["name"] for device in devices] == ["device:0", "device:1"]
    for device in devices:
        assert 0 < device["device_ms"]["min"] <= device["batch_ms"]["max"]
    assert results["benchmark"]["bound"]["shared_cores_pictures_per_second"] is None
    assert results["benchmark"]["end_to_end"]["pictures"] == 9


def test_a_device_that_fails_is_not_left_out_of_the_rate(command, tmp_path):
    done = command(
        "job=benchmark", "backend=simulated", "devices=2", "backend.fault=fail_opening",
        "backend.fault_device=1", "benchmark.parts=[inference]", "benchmark.loops=2", *SIZE,
        "cluster.dashboard=false", "output_dir=out",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("cfdist: device:1") and "its rate would be missing" in line
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_sweep_of_benchmarks(command, tmp_path):
    done = command(
        "-m", "job=benchmark", "backend=simulated", "model.batch=1,4", *SIZE,
        "benchmark.parts=[inference]", "benchmark.loops=2", "cluster.dashboard=false",
        "output_dir=sweep", SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rates = [read(tmp_path / "sweep" / str(i))["throughput"]["pure_inference"] for i in (0, 1)]
    assert min(rates) > 0
    assert [read(tmp_path / "sweep" / str(i))["batch"] for i in (0, 1)] == [1, 4]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("benchmark.loops=0", "benchmark.loops=0: must be a whole number from 1"),
        ("benchmark.parts=[hots]", "each value inference, host or end_to_end"),
        ("benchmark.parts=[]", "benchmark.parts: must not be empty"),
        ("benchmark.readers=[1,0]", "each value a whole number from 1 to 1024"),
        ("benchmark.readers=[]", "benchmark.readers=[]: must be auto"),
        ("benchmark.readers=0", "benchmark.readers=0: must be auto, a whole number from 1"),
        ("benchmark.readers=many", "auto, a whole number from 1 to 1024 or a list"),
        ("benchmark.pictures=0", "benchmark.pictures=0: must be a whole number from 1"),
        ("benchmark.input=ones", "benchmark.input=ones: must be zeros or random"),
    ],
)
def test_settings_out_of_range(compose, override, words):
    with pytest.raises(UserError, match=re.escape(words)):
        compose("job=benchmark", override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("benchmark.loops=0", "benchmark.loops=0: must be a whole number from 1"),
        ("benchmark.parts=host", "benchmark.parts=host: must be a list"),
        ("eval.gate=true", "eval.gate: job=benchmark does not read it; it is for job="),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, override, words):
    done = command("job=benchmark", override)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("kept_processes")
def test_an_interrupted_benchmark_leaves_no_scratch(compose, tmp_path, monkeypatch):
    """Its prediction files are no run's."""

    def interrupt(task, listener):
        assert task.output.is_dir()
        (task.output / "predictions.parquet").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "evaluate_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(compose, tmp_path, "backend=simulated", "benchmark.parts=[end_to_end]")
    assert list(tmp_path.iterdir()) == []

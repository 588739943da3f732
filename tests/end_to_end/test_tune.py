"""`job=tune`: a search, its preset, going on after an interruption, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
COMMON = ("cluster.dashboard=false", "report=false", "output_dir=out")
SLOW = ("backend=simulated", "backend.latency_ms=100")
SIMULATED = ("job=tune", *SLOW, "tune.batches=[1,4]", *COMMON)


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_fastest_keeps_the_ap_and_becomes_a_preset(command, tmp_path):
    done = command(
        *("job=tune", "backend=onnxruntime", "model.height=64", "model.width=64", *COMMON),
        *("tune.batches=[1,4]", "backend.streams=1", "tune.pictures=24", "dataset.limit=30"),
        *("tune.minutes=3", "quiet=true"),
    )
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / "out")
    found = results["tuning"]
    assert found["reference"] == "openvino f32"
    numbers = found["numbers"]["onnxruntime CPUExecutionProvider"]
    assert abs(numbers["loss"]) <= 0.002 and len(numbers["ap"]) == 3
    rates = {one["name"]: one["pictures_per_second"] for one in found["candidates"]}
    assert {name.rpartition(", ")[2] for name in rates} == {"batch 1", "batch 4"}
    # Whoever is the first was measured again, and nobody was faster.
    assert found["is_whole"] and all(one["again"] for one in found["candidates"])
    assert found["pictures_per_second"] == max(rates.values())
    assert found["candidates"][0]["settings"] == found["best"]
    assert results["batch"] == found["best"]["model.batch"]

    # The very command at the end runs with the preset, on the same pictures.
    folder = tmp_path / "out" / "conf"
    (line,) = re.findall(rf"preset: {folder}/experiment/tuned.yaml; use it: (.*)", done.stdout)
    words = shlex.split(line)[-3:]
    assert words == [f"--config-dir={folder}", "experiment=tuned", "dataset.limit=30"]
    used = command(*words, "output_dir=used")
    assert used.returncode == 0, used.stderr
    config = read(tmp_path / "used")["config"]
    assert (config["backend"]["name"], config["backend"]["streams"]) == ("onnxruntime", 1)
    assert config["model"]["batch"] == found["best"]["model.batch"]
    assert (config["model"]["width"], config["dataset"]["limit"]) == (64, 30)


def test_a_search_that_was_interrupted_goes_on(command, tmp_path):
    def kept() -> list[str]:
        file = tmp_path / "out" / "trials.json"
        return list(json.loads(file.read_text())["trials"]) if file.is_file() else []

    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *SIMULATED, "backend.streams=1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while len(kept()) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # SIGINT may be ignored here, and stays so then
    _, said = process.communicate(timeout=100)
    before = kept()
    assert len(before) >= 2 and process.returncode == 143, said
    assert "go on with: " in said and said.rstrip().endswith("resume=out")
    assert not (tmp_path / "out" / "results.json").exists()

    refused = command("resume=out", "model.batch=2")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a run of other settings: model.batch=1 then, 2 now" in refused.stderr
    done = command("resume=out", "tune.minutes=5")
    assert done.returncode == 0, done.stderr
    assert f"; {len(before)} runs are there from an earlier command" in done.stdout
    assert kept()[: len(before)] == before
    found = read(tmp_path / "out")
    # What was typed then was not tried now.
    assert {one["settings"]["backend.streams"] for one in found["tuning"]["candidates"]} == {1}
    # Simulated devices: four pictures take as long as one, and far longer than the host.
    assert found["simulated"] and found["tuning"]["best"]["model.batch"] == 4
    assert "SIMULATED" in done.stdout
    # A log that nothing was written to is not left.
    assert set(os.listdir(tmp_path / "out")) - {"run.log"} == {
        *(".lock", "config.yaml", "conf", "results.json", "trials.json"),
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["tune.models=[nowhere.onnx]"], "tune.models=nowhere.onnx"),
        (["tune.tolerance=2"], "tune.tolerance=2: must be a number from 0 to 1"),
        (["objective=hard"], "objective: job=tune does not read it"),
        (["experiment=authors_own_size"], "job=tune: measures letterboxed pictures"),
        (["model.path=nowhere.onnx", "backend=openvino"], "nowhere.onnx"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, settings, words):
    done = command("job=tune", *settings, *COMMON)
    assert (done.returncode, done.stdout) in [(2, ""), (2, "starting job=tune ...\n")], done.stderr
    (line,) = done.stderr.splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []

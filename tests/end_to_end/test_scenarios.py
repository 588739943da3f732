"""`job=benchmark benchmark.scenario=...`: what a person gets, and what is no result."""

from __future__ import annotations

import json
import re

import pytest

SIZE = ("model.height=64", "model.width=64", "cluster.dashboard=false", "output_dir=out")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def test_one_picture_after_another(command, tmp_path):
    done = command(
        *("job=benchmark", "benchmark.scenario=single_stream", "benchmark.pictures=110", *SIZE),
        *("backend=onnxruntime", "benchmark.min_seconds=2", "experiment=quick"),
    )
    assert done.returncode == 0, done.stderr
    assert "110 pictures, one after another, for at least 2 s" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["batch"], results["failures"], results["ap"]) == (1, [], {})
    part, latency = results["benchmark"], results["latency_ms"]
    assert part["pictures"] >= 110
    assert part["measured_seconds"] >= 2
    for times in latency.values():
        assert 0 < times["min"] <= times["median"] <= times["p90"] <= times["p99"] <= times["max"]
    steps = sum(latency[name]["mean"] for name in ("reading", "inference", "finding faces"))
    assert latency["whole"]["mean"] == pytest.approx(steps)
    # One after the other: no picture waits for another one.
    whole = latency["whole"]["mean"] * part["pictures"] / 1000
    assert 0.8 * part["measured_seconds"] < whole <= part["measured_seconds"]
    (row,) = re.findall(r"a picture, from its file to its faces (.*)", done.stdout)
    shown = [f"{latency['whole'][name]:.2f}" for name in ("min", "mean", "median", "p90", "p99")]
    assert row.split() == shown
    assert "Latency, milliseconds" in (tmp_path / "out" / "report.html").read_text()


def test_too_short_a_run_is_no_result_and_says_how_long_it_takes(command, tmp_path):
    done = command(
        *("-m", "job=benchmark", "benchmark.scenario=offline,single_stream", *SIZE),
        *("benchmark.pictures=20", "benchmark.min_seconds=0.5,0", "backend=simulated"),
        *("backend.latency_ms=1", "report=false"),
    )
    assert done.returncode == 0, done.stderr
    folders = [tmp_path / "out" / str(number) for number in range(4)]
    offline, quick, _, single = (json.loads((f / "results.json").read_text()) for f in folders)
    # The loops go on, however few they are; the data set ends.
    for found, seconds in ((offline, 0.5), (quick, 0.0)):
        (device,) = found["benchmark"]["inference"]["devices"]
        assert device["batch_count"] * device["batch_ms"]["mean"] >= 1000 * seconds
        assert device["batch_count"] >= 20
        assert found["throughput"]["steady"] is None
    (note,) = [note for note in offline["notes"] if "min_seconds" in note]
    assert re.fullmatch(
        r"the end-to-end part took [\d.]+ s, too short for a rate by benchmark.min_seconds=0.5; "
        r"so long it takes with about benchmark.pictures=\d+",
        note,
    )
    (note,) = [note for note in single["notes"] if "99th" in note]
    assert re.match(r"20 pictures in [\d.]+ s are too few for a 99th percentile, which tak", note)
    assert single["latency_ms"]["whole"] is None
    assert note in done.stdout


def test_several_devices_are_refused(command, tmp_path):
    done = command("job=benchmark", "benchmark.scenario=single_stream", "devices=2", *SIZE)
    assert (done.returncode, done.stdout) == (2, "starting job=benchmark ...\n")
    assert done.stderr.startswith("cfdist: devices=2: benchmark.scenario=single_stream is that of")
    assert list(tmp_path.iterdir()) == []

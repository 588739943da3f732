"""Whole commands that are watched: events, the log, and what Prometheus gets of a live run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cfdist.monitoring.metrics import METRICS
from tests.conftest import PROJECT

MAIN = [sys.executable, str(PROJECT / "main.py")]
SIMULATED = ["backend=simulated", "devices=2"]


def events_of(text: str) -> list[dict]:
    """The lines of a stream; each has to be an object of its version."""
    events = [json.loads(line) for line in text.splitlines()]
    assert all({"version", "event", "time"} <= one.keys() for one in events)
    assert {one["version"] for one in events} == {1}
    assert [one["event"] for one in events].count("end") == 1
    assert events[-1]["event"] == "end"
    return events


def named(events: list[dict], kind: str) -> list[dict]:
    return [one for one in events if one["event"] == kind]


def test_a_program_follows_a_sweep_with_a_device_that_dies(command, tmp_path):
    """Ray's line about the dead process is in the log and nowhere else."""
    fault = ["backend.latency_ms=30", "backend.fault=die", "backend.fault_device=1"]
    fault += ["backend.fault_once=true", "backend.fault_after=5"]
    settings = [*SIMULATED, *fault, "dataset.limit=60", "output_dir=out"]
    done = command("-m", *settings, "model.batch=1,2", "progress=json")
    assert done.returncode == 0, done.stderr
    events = events_of(done.stdout)
    assert [one["output_dir"] for one in named(events, "start")] == [
        *(str(tmp_path / "out" / number) for number in "01"),
    ]
    ends = named(events, "run_end")
    for number, end in enumerate(ends):
        results = json.loads(Path(end["results"]).read_text())
        assert Path(end["results"]).parent == tmp_path / "out" / str(number)
        assert (end["exit_code"], end["pictures"]) == (0, results["pictures"])
        assert end["throughput"] == results["throughput"]
    progress = named(events, "progress")
    assert progress[-1]["done"] == progress[-1]["total"] == 60
    assert {one["name"] for one in progress[-1]["devices"]} == {"device:0", "device:1"}
    assert sum(one["done"] for one in progress[-1]["devices"]) == 60
    assert events[-1]["results"] is None
    assert any("SIMULATED" in one["text"] for one in named(events, "message"))
    assert "raylet" not in done.stdout + done.stderr
    assert "device_lost" in (tmp_path / "out" / "0" / "run.log").read_text()


@pytest.mark.parametrize(
    ("settings", "code", "text"),
    [
        (["model.batch=x"], 2, "model.batch=x: must be a whole number"),
        (["progres=json"], 2, "progres: no such key"),
        (["quiet=true"], 2, "quiet: has no effect on this run"),
        (["job=score", "predictions=nowhere"], 2, "nowhere"),
        (["job=what"], 2, "job"),
    ],
)
def test_a_refused_command_is_an_event_and_a_line(command, settings, code, text):
    done = command(*settings, "progress=json")
    assert done.returncode == code
    events = events_of(done.stdout)
    (error,) = named(events, "error")
    assert error["exit_code"] == events[-1]["exit_code"] == code
    assert text in error["message"]
    assert done.stderr == f"cfdist: {error['message']}\n"


def test_an_interrupted_command_ends_its_stream(tmp_path):
    settings = [*SIMULATED, "backend.latency_ms=500", "output_dir=out", "progress=json"]
    process = subprocess.Popen([*MAIN, *settings], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if json.loads(line).get("done", 0) > 2:
            process.send_signal(signal.SIGTERM)
            break
    lines += process.stdout
    assert process.wait() == 143
    events = events_of("".join(lines))
    (error,) = named(events, "error")
    assert error["message"].startswith("interrupted; go on with: ")
    assert events[-1]["exit_code"] == 143


def test_quiet_and_verbose(command, tmp_path):
    short = [*SIMULATED, "backend.latency_ms=0", "dataset.limit=8"]
    done = command(*short, "quiet=true", "output_dir=quiet")
    assert (done.returncode, done.stderr) == (0, "")
    simulated, speed, path, page = done.stdout.splitlines()
    assert simulated.startswith("SIMULATED: ")
    assert speed.startswith("simulated, batch 1: ")
    assert path == f"results: {tmp_path / 'quiet' / 'results.json'}"
    assert page == f"report: {tmp_path / 'quiet' / 'report.html'}"
    done = command(*short, "verbose=true", "output_dir=verbose", "cluster.dashboard=false")
    assert done.returncode == 0, done.stderr
    assert "Started a local Ray instance" in done.stdout + done.stderr
    assert "results: " in done.stdout


# Runs commands in one Ray session, reads what its agent exports meanwhile and after each, and notes
# the names of the actors and tasks.
SCRAPING = """
import json, os, sys, threading, time, urllib.request
from pathlib import Path
from cfdist.command import cli
from cfdist.distributed.session import session
from cfdist.monitoring.terminal import guard_screen

guard_screen()
output = Path(sys.argv[1])

def scrape(node):
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return urllib.request.urlopen(url, timeout=10).read().decode()

def passes_of(settings):
    given = dict(setting.split("=", 1) for setting in settings)
    return int(given.get("dataset.repeat", 1))

def done_pictures(text, number):
    label = f'run="{output.name}/{number}"'
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("ray_cfdist_pictures_done_total{") and label in line
    )

with session(None, dashboard=False):
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData
    (node,) = ray.nodes()
    # The run begins at once, before Ray's agent is there: its first counts are kept back.
    for number, settings in enumerate(json.loads(sys.argv[2])):
        texts, ended, names = [], threading.Event(), set()

        def look():
            while not ended.wait(1.0):
                try:
                    texts.append(scrape(node))
                except OSError:  # the agent starts meanwhile
                    continue
                table = state._connect_and_get_accessor().get_actor_table(None, None)
                for one in map(ActorTableData.FromString, table):
                    names.add((one.name, one.repr_name))

        thread = threading.Thread(target=look)
        thread.start()
        sys.argv[1:] = [*settings, f"output_dir={output / str(number)}"]
        cli.outcomes.clear()
        code = cli.main()
        ended.set()
        thread.join()
        # What is exported last, about a second after the run's end; the gauges go two later. On a
        # busy machine gauges go as well while the driver's next export is late.
        pictures = json.loads((output / str(number) / "results.json").read_text())["pictures"]
        wanted = pictures["done"] * passes_of(settings)
        last, deadline = "", time.monotonic() + 40
        while time.monotonic() < deadline:
            text = scrape(node)
            has_gauges = text.count("ray_cfdist_ap{") == 6
            if last and not has_gauges:
                break
            if has_gauges and done_pictures(text, number) == wanted:
                last = text
            time.sleep(0.2)
        found = {"code": code, "live": texts, "last": last, "names": sorted(names)}
        (output / f"{number}.json").write_text(json.dumps(found))
"""


def values_of(text: str, run: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Series -> (its labels in order) -> value, of a run."""
    wanted = {one.exported: one.labels for one in METRICS}
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            base = sample.name
            for end in ("_bucket", "_sum", "_count"):
                base = base.removesuffix(end) if base.removesuffix(end) in wanted else base
            if base in wanted and sample.labels.get("run") == run:
                labels = [sample.labels[name] for name in wanted[base]]
                labels += [sample.labels["le"]] if "le" in sample.labels else []
                found.setdefault(sample.name, {})[tuple(labels)] = sample.value
    return found


def test_prometheus_gets_each_metric_of_a_live_run_and_they_agree_with_the_results(
    command, tmp_path
):
    """One picture is damaged, so that there is one that fails."""
    sample = tmp_path / "sample"
    assert command("job=score", "predictions=x", f"dataset.root={sample}").returncode == 2
    picture = sorted((sample / "WIDER_val" / "images").glob("*/*.jpg"))[2]
    picture.write_bytes(b"no picture")
    settings = ["model.height=320", "model.width=320", "dataset.limit=24", "dataset.repeat=60"]
    settings += [f"dataset.root={sample}", "devices=2", "backend=onnxruntime"]
    done = subprocess.run(
        [sys.executable, "-c", SCRAPING, str(tmp_path), json.dumps([settings])],
        env={**os.environ, "RAY_metrics_report_interval_ms": "1000", "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = json.loads((tmp_path / "0.json").read_text())
    assert found["code"] == 3, done.stderr
    results = json.loads((tmp_path / "0" / "results.json").read_text())
    last = values_of(found["last"], f"{tmp_path.name}/0")
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in last} == {
        one.exported for one in METRICS
    }
    host = results["devices"][0]["host"]
    done_by = last["ray_cfdist_pictures_done_total"]
    failed_by = last["ray_cfdist_pictures_failed_total"]
    for device in results["devices"]:
        key = (device["name"], host)
        assert done_by[key] == device["pictures"]
        assert last["ray_cfdist_device_busy_share"][key] <= 1
        assert last["ray_cfdist_device_chunks"][key] == 0
        busy = last["ray_cfdist_device_busy_seconds_total"][key]
        assert busy / results["seconds"]["run"] == pytest.approx(device["busy_share"], rel=0.1)
        count = last["ray_cfdist_batch_seconds_count"][key]
        assert 0 < count <= device["pictures"]
        assert last["ray_cfdist_batch_seconds_bucket"][(*key, "+Inf")] == count
        mean = last["ray_cfdist_batch_seconds_sum"][key] / count
        assert mean == pytest.approx(device["batch_ms"]["mean"] / 1000, rel=0.5)
        starved = last["ray_cfdist_device_starved_seconds_total"].get(key, 0.0)
        assert busy + starved <= results["seconds"]["run"] * 1.1
    assert sum(done_by.values()) == 60 * results["pictures"]["done"] == 60 * 23
    assert sum(failed_by.values()) == 60 * results["pictures"]["failed"] == 60
    assert last["ray_cfdist_pictures_wanted"] == {(): 60 * 24}
    assert last["ray_cfdist_reducer_lag_pictures"] == {(): 0}
    assert last["ray_cfdist_ap"] == {
        (protocol, difficulty): pytest.approx(value)
        for protocol, values in results["ap"].items()
        for difficulty, value in values.items()
    }
    live = [values_of(text, f"{tmp_path.name}/0") for text in found["live"]]
    counts = [sum(one.get("ray_cfdist_pictures_done_total", {}).values()) for one in live]
    assert counts == sorted(counts)
    assert any(0 < count < 60 * 23 for count in counts), counts
    names = dict(one for one in found["names"] if one[1])
    assert names["reducer"] == "reducer"
    assert names["device:0"] == f"device CPU 0 on {host}"

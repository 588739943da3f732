"""Sweeps: one summary at the end, whatever became of the runs."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import yaml

from cfdist.command.run_folder import SWEEP_FILES, read_results
from tests.conftest import PROJECT

SIMULATED = ("backend=simulated", "cluster.dashboard=false", "output_dir=out")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(result, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("cfdist: ")
    for word in words:
        assert word in line


def test_a_run_that_fails_stops_no_other_and_is_in_the_summary(command, tmp_path):
    sweep = ("-m", "devices=1,1024,2", "backend.latency_ms=60", *SIMULATED)
    result = command(*sweep)

    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("cfdist: devices=1024: ")
    reason = line.removeprefix("cfdist: ")
    out = tmp_path / "out"
    rows = table_of(out)
    assert [row["devices"] for row in rows] == ["1", "1024", "2"]
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert [row["simulated"] for row in rows] == ["true", "false", "true"]
    assert rows[1]["reason"] == reason
    assert [row["ap_easy"] for row in rows] == [""] * 3
    assert float(rows[0]["steady_pictures_per_s"]) > 0
    assert float(rows[2]["steady_pictures_per_s"]) > 0
    assert not (out / "1").exists()
    page = (out / "sweep.md").read_text()
    assert "**Simulated**" in page
    assert reason in page
    assert cv2.imread(str(out / "throughput.png")).shape == (600, 960, 3)
    shown = result.stdout[result.stdout.index("sweep of 3 runs, SIMULATED") :]
    assert f"failed: run 1 (devices=1024): {reason}" in " ".join(shown.split())
    assert f"sweep: {out / 'sweep.md'}" in shown

    before = content_of(out)
    assert_refused(command(*sweep), "holds a finished sweep (sweep.csv)", "choose another")
    assert_refused(command(*SIMULATED), "holds a sweep (sweep.csv)")
    assert_refused(command("-m", *SIMULATED[:2], "output_dir=out/0"), "holds a single run")
    assert content_of(out) == before

    # Without its summary a sweep is unfinished: what is done counts, what is not is tried again.
    for name in ("sweep.csv", "sweep.md", "throughput.png"):
        (out / name).unlink()
    again = command(*sweep)
    assert again.returncode == 2
    assert again.stdout.count("done by an earlier command") == 2
    assert content_of(out) == before


def test_the_published_table_in_one_word(command, tmp_path):
    result = command(
        "experiment=published_table", "backend.latency_ms=0", "dataset.limit=8", *SIMULATED
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows = table_of(tmp_path / "out")
    assert [row["model.batch"] for row in rows] == ["1", "4", "8", "16", "32"]
    assert {row["protocol"] for row in rows} == {"guide"}
    # Eight pictures of the sample set are not what the published figures were measured on.
    assert {row["published_images_per_s"] for row in rows} == {""}
    page = (tmp_path / "out" / "sweep.md").read_text()
    assert "one Ascend 310P3" not in page
    assert "- data set: sample\n- pictures: 8\n- host: " in page
    assert (tmp_path / "out" / "throughput.png").is_file()


def test_settings_on_the_command_line_win_over_the_experiment_s(command, tmp_path):
    result = command(
        *("experiment=published_table", "model.batch=3", "devices=1,2"),
        *("backend.latency_ms=0", "dataset.limit=8", *SIMULATED),
    )
    assert result.returncode == 0, result.stderr
    rows = table_of(tmp_path / "out")
    assert [(row["batch"], row["devices"], row["protocol"]) for row in rows] == [
        ("3", "1", "guide"),
        ("3", "2", "guide"),
    ]
    assert "model.batch" not in rows[0]


def interrupt(sweep: tuple[str, ...], folder: Path, run: str) -> None:
    """Start a sweep into `out`; press Ctrl-C once a run has its first pictures on disk."""
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *sweep],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job of a shell, as the tests may be, ignores Ctrl-C, and so would its child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not any(p.stat().st_size for p in (folder / "out" / run).glob("journal/segment-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.startswith("cfdist: interrupted; go on with: ")
    assert error.endswith(" resume=out\n")


def test_an_interrupted_sweep_goes_on(command, tmp_path):
    sweep = ("-m", "backend.latency_ms=0,100", *SIMULATED)
    interrupt(sweep, tmp_path, run="1")
    assert not (tmp_path / "out" / "sweep.csv").exists()
    first = (tmp_path / "out" / "0" / "results.json").read_bytes()
    begun = tmp_path / "out" / "0" / "config.yaml"
    settings = yaml.safe_load(begun.read_text())
    del settings["log"], settings["eval"]["metrics"]  # as an earlier version has written it
    begun.write_text(yaml.safe_dump(settings))

    again = command(*sweep)
    assert again.returncode == 0, again.stderr
    assert f"{tmp_path / 'out' / '0'}: done by an earlier command" in again.stdout
    assert (tmp_path / "out" / "0" / "results.json").read_bytes() == first
    assert [row["state"] for row in table_of(tmp_path / "out")] == ["done", "done"]
    assert "were done by an earlier" in (tmp_path / "out" / "sweep.md").read_text()


def test_a_sweep_interrupted_in_its_first_run_reads_each_picture_once_when_it_goes_on(
    command, tmp_path
):
    sweep = ("-m", "backend.latency_ms=60,0", "model.batch=2", *SIMULATED)
    interrupt(sweep, tmp_path, run="0")

    again = command(*sweep)
    assert again.returncode == 0, again.stderr
    first, second = (read_results(tmp_path / "out" / name) for name in "01")
    (resumed,) = (note for note in first["notes"] if "by an earlier, interrupted run" in note)
    done = int(resumed.split()[0])
    assert 0 < done < first["pictures"]["total"]
    # The interrupted command's store is gone with it.
    assert first["pictures_decoded"] == first["pictures"]["total"] - done
    assert second["pictures_decoded"] == done
    assert [row["state"] for row in table_of(tmp_path / "out")] == ["done", "done"]


def test_runs_of_other_settings_are_left_alone(command, tmp_path):
    run = tmp_path / "out" / "0"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    (run / "config.yaml").write_text("job: evaluate\n")
    (tmp_path / "out" / ".lock").touch()  # as a sweep that was interrupted leaves it
    before = content_of(tmp_path / "out")
    result = command("-m", "model.batch=1,2", "backend.providers=[No]", "backend=onnxruntime",
                     "output_dir=out")  # fmt: skip
    assert result.returncode == 2
    refused, second = result.stderr.splitlines()
    assert "out/0: holds a finished run" in refused
    assert "'No'" in second
    after = content_of(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert "sweep.csv" not in after


def test_a_run_whose_folder_cannot_be_written_to_fails_alone(command, tmp_path):
    (tmp_path / "out" / "0" / "config.yaml").mkdir(parents=True)
    (tmp_path / "out" / "1").mkdir()
    for held in (tmp_path / "out", tmp_path / "out" / "0"):
        (held / ".lock").touch()  # as a sweep that was interrupted leaves it
    result = command("-m", "model.batch=1,2", "backend.providers=[No]", "backend=onnxruntime",
                     "output_dir=out")  # fmt: skip
    assert result.returncode == 2
    first, second = result.stderr.splitlines()
    assert first.startswith(f"cfdist: output_dir={tmp_path / 'out' / '0'}: ")
    assert "Is a directory" in first
    assert "'No'" in second


def test_a_run_whose_results_are_damaged_fails_alone(command, tmp_path):
    boxes = tmp_path / "boxes" / "0--Portraits" / "0_Portraits_1.txt"
    boxes.parent.mkdir(parents=True)
    boxes.write_text("0_Portraits_1\n0\n")
    sweep = ("-m", "job=score", "eval=official,guide", "predictions=boxes", "dataset.limit=1",
             "output_dir=out")  # fmt: skip
    assert command(*sweep).returncode == 0
    out = tmp_path / "out"
    whole = (out / "0" / "results.json").read_text()
    (out / "0" / "results.json").write_text(whole[:100])
    for name in SWEEP_FILES:
        (out / name).unlink(missing_ok=True)

    again = command(*sweep)
    assert again.returncode == 2
    (line,) = again.stderr.splitlines()
    assert str(out / "0" / "results.json") in line
    assert f"{out / '1'}: done by an earlier command" in again.stdout
    assert [row["state"] for row in table_of(out)] == ["failed", "done"]
    assert (out / "0" / "results.json").read_text() == whole[:100]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["modle.batch=1,2"], ["modle.batch", "did you mean model.batch?"]),
        (["model.batch=1,2", "output_dir="], ["output_dir", "must not be empty"]),
        (["model.batch=1,2", "output_dir=/proc/no"], ["/proc/no", "cannot be made"]),
        (["model.batch=1,x", *SIMULATED], ["model.batch=x: must be a whole number"]),
        (["experiment=none"], ["experiment=none", "there are", "published_table"]),
    ],
)
def test_a_sweep_that_is_refused_leaves_nothing(command, tmp_path, arguments, words):
    assert_refused(command("-m", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_whose_runs_are_all_refused_leaves_nothing(command, tmp_path):
    result = command("-m", "model.batch=0,-1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_one_run_reads_the_pictures_for_the_further_ones_and_no_byte_differs(
    cold_command, tmp_path
):
    result = cold_command(
        *("-m", "preprocess.cache=false,auto", "model.batch=1,4", "backend=openvino"),
        *("model.height=256", "model.width=256", "dataset.limit=24", "output_dir=out"),
        "cluster.dashboard=false",
    )

    assert result.returncode == 0, result.stderr
    folders = [tmp_path / "out" / name for name in "0123"]
    runs = [read_results(folder) for folder in folders]
    assert [run["pictures_decoded"] for run in runs] == [24, 24, 24, 0]
    assert [run["letterboxed"] for run in runs] == ["device", "device", "device", "store"]
    assert any("24 pictures were not decoded again" in note for note in runs[3]["notes"])
    found = [
        content_of(folder / "predictions") | {"": (folder / "predictions.parquet").read_bytes()}
        for folder in folders
    ]
    assert len(found[0]) == 25
    assert all(one == found[0] for one in found)
    # One Ray session: the further runs start nothing.
    first, *further = [run["start_up_seconds"]["ray"] for run in runs]
    assert max(further) < first / 4
    assert (tmp_path / "out" / "throughput.png").is_file()

"""Whole commands whose reducer, head or node is lost: they end by themselves, with nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT
from tests.faults import IS_LONG

pytestmark = pytest.mark.slow

# A run ends within 60 s of such a fault; two of them at a time, on a busy machine, take longer.
LONGEST_SECONDS = 150
# A process of Ray is called as what it does now.
REDUCER, HEAD = ("ray::ReducerActor", "ray::journal"), ("gcs_server",)
NODE = ("raylet/raylet",)
SETTINGS = ("dataset.limit=60", "model.height=320", "model.width=320", "backend=openvino")


def process_named(parent: int, names: tuple[str, ...]) -> int:
    """The process of a command whose command line begins with a name, or a path that ends so."""
    for one in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            first = " ".join(one.cmdline()).split(" --")[0]
            if first.startswith(names) or first.endswith(names):
                return one.pid
    raise AssertionError(f"no {names}")


# Starts a cluster of so many nodes of one CPU, prints its address and its last node's process, adds
# a node for each further line of its input, and ends with that.
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = None
for _ in range(int(sys.argv[1]) - 1):
    node = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, node and node.all_processes["raylet"][0].process.pid, flush=True)
for line in sys.stdin:
    cluster.add_node(num_cpus=1)
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster_of(count: int) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """A cluster: its address, the process of its last node's raylet, and its own process."""
    with subprocess.Popen(
        [sys.executable, "-c", NODES, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            found = (re.search(r"(\S+:\d+) (\d+|None)$", line.strip()) for line in process.stdout)
            address, raylet = next(filter(None, found)).groups()
            yield address, raylet, process
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def with_journal(process: subprocess.Popen, output: Path) -> None:
    """Wait until a command has detections on disk."""
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size for part in output.glob("journal/segment-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command_on(address: str, tmp_path: Path) -> subprocess.Popen:
    """A run of some 20 s on two devices, with `devices=auto` on a cluster."""
    return subprocess.Popen(
        [
            *(sys.executable, PROJECT / "main.py", "output_dir=disturbed", *SETTINGS),
            *(f"cluster.address={address}", "cluster.wait_s=10", "dataset.repeat=8"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def predictions(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "predictions").rglob("*.txt"), folder / "predictions.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The predictions of an undisturbed run, once a picture."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, PROJECT / "main.py", "output_dir=whole", *SETTINGS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return predictions(folder / "whole")


def events_of(folder: Path, whole: dict[str, bytes]) -> list[str]:
    """What happened in a run whose predictions are those of the undisturbed one."""
    assert len(whole) == 61
    assert predictions(folder) == whole
    results = json.loads((folder / "results.json").read_text())
    assert results["pictures"] == {"total": 60, "done": 60, "failed": 0}
    return [event["what"] for event in results["events"]]


# Workers end by themselves, a moment later, when their node's process is gone.
@pytest.mark.parametrize("workers_too", [False, True] if IS_LONG else [True])
def test_a_run_goes_on_without_a_lost_node(tmp_path, whole, workers_too):
    with cluster_of(2) as (address, raylet, _), command_on(address, tmp_path) as process:
        with_journal(process, tmp_path / "disturbed")
        node = psutil.Process(int(raylet))
        lost = [node, *(node.children(recursive=True) if workers_too else [])]
        for one in lost:
            one.kill()
        began = time.monotonic()
        said = process.communicate(timeout=LONGEST_SECONDS + 60)
        assert process.returncode == 0, said
        assert time.monotonic() - began < LONGEST_SECONDS
    assert "device_lost" in events_of(tmp_path / "disturbed", whole)


def test_a_node_that_joins_gets_a_device(tmp_path, whole):
    with cluster_of(1) as (address, _, nodes), command_on(address, tmp_path) as process:
        with_journal(process, tmp_path / "disturbed")
        nodes.stdin.write("\n")
        nodes.stdin.flush()
        said = process.communicate(timeout=LONGEST_SECONDS + 60)
        assert process.returncode == 0, said
    assert events_of(tmp_path / "disturbed", whole) == ["device_added"]


@pytest.fixture
def disturbed(tmp_path) -> Callable[..., tuple[subprocess.CompletedProcess, float]]:
    """Runs a command, and signals one of its processes once detections are on disk.

    Gives what became of the command, and the seconds from the signal to its end.
    """

    def run(name: str, number: int, *arguments: str, folder: str = "disturbed") -> tuple:
        output = tmp_path / "disturbed"
        command = [sys.executable, PROJECT / "main.py", f"output_dir={output}", *arguments]
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            with_journal(process, tmp_path / folder)
            os.kill(process_named(process.pid, name), number)
            began = time.monotonic()
            said = process.communicate(timeout=LONGEST_SECONDS + 60)
            done = subprocess.CompletedProcess(command, process.returncode, *said)
            return done, time.monotonic() - began

    return run


# One that hangs is noticed after 30 s; tests/distributed/test_watch.py tries it with less.
SIGNALS = [signal.SIGKILL, signal.SIGSTOP] if IS_LONG else [signal.SIGKILL]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_reducer_that_dies_or_hangs_changes_no_byte(disturbed, tmp_path, whole, number):
    done, seconds = disturbed(REDUCER, number, *SETTINGS, "dataset.repeat=4")
    assert done.returncode == 0, done.stderr
    assert seconds < LONGEST_SECONDS
    assert events_of(tmp_path / "disturbed", whole) == ["reducer_restarted"]


def test_a_lost_head_ends_the_run_and_the_next_one_goes_on(command, disturbed, tmp_path):
    settings = ("backend=simulated", "backend.latency_ms=200", "dataset.repeat=4")
    done, seconds = disturbed(HEAD, signal.SIGKILL, *settings, "cluster.wait_s=5")
    assert done.returncode == 1
    assert seconds < LONGEST_SECONDS
    lines = [line for line in done.stderr.splitlines() if line.startswith("cfdist: ")]
    assert len(lines) == 1, (done.stdout, done.stderr, seconds)
    assert "the head of the Ray cluster" in lines[0]
    assert "Traceback" not in done.stderr
    resumed = command(*settings[:1], "backend.latency_ms=0", settings[2], "output_dir=disturbed")
    assert resumed.returncode == 0, resumed.stderr
    results = json.loads((tmp_path / "disturbed" / "results.json").read_text())
    assert results["pictures"] == {"total": 69, "done": 69, "failed": 0}
    assert any("were done by an earlier" in note for note in results["notes"])


# Runs a command whose parent is process 1, as in a container or under systemd.
ORPHAN = "import os, sys; os.fork() and os._exit(0); os.execv(sys.argv[1], sys.argv[1:])"


def test_a_lost_node_process_fails_one_run_of_an_orphan_s_sweep(tmp_path):
    settings = ("-m", "backend=simulated", "backend.latency_ms=200,0", "dataset.limit=20")
    command = [sys.executable, PROJECT / "main.py", *settings, "output_dir=out", "progress=json"]
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, *command], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        parent.wait(timeout=60)
        parent.poll = lambda: None  # the orphan goes on
        with_journal(parent, tmp_path / "out" / "0")
        (orphan,) = (
            one.pid
            for one in psutil.process_iter()
            if one.ppid() == 1 and one.pid != os.getpid() and is_at(one, tmp_path)
        )
        os.kill(process_named(orphan, NODE), signal.SIGKILL)
        shown, said = parent.communicate(timeout=LONGEST_SECONDS + 60)
    events = [json.loads(line) for line in shown.splitlines()]
    assert (events[-1]["event"], events[-1]["exit_code"]) == ("end", 1)
    lines = [line for line in said.splitlines() if line.startswith("cfdist: ")]
    assert len(lines) == 1, said
    assert "Ray's node process on this host has ended" in lines[0]
    results = json.loads((tmp_path / "out" / "1" / "results.json").read_text())
    assert results["pictures"] == {"total": 20, "done": 20, "failed": 0}


def is_at(process: psutil.Process, folder: Path) -> bool:
    """Whether a process is this program's command in a folder."""
    with contextlib.suppress(psutil.Error):
        return Path(process.cwd()) == folder and str(PROJECT / "main.py") in process.cmdline()
    return False


def test_a_lost_head_fails_one_run_of_a_sweep(disturbed, tmp_path):
    settings = ("-m", "backend=simulated", "backend.latency_ms=200", "dataset.limit=20")
    changed = ("dataset.repeat=4,1", "cluster.wait_s=5")
    done, _ = disturbed(HEAD, signal.SIGKILL, *settings, *changed, folder="disturbed/0")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("cfdist: ")]
    assert len(lines) == 1, (done.stdout, done.stderr)
    assert "the head of the Ray cluster" in lines[0]
    results = json.loads((tmp_path / "disturbed" / "1" / "results.json").read_text())
    assert results["pictures"] == {"total": 20, "done": 20, "failed": 0}

"""Whole commands whose reducer, head or node is lost: they end by themselves, with nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from tests.conftest import PROJECT
from tests.fakes.gated import GATE
from tests.faults import IS_LONG

pytestmark = pytest.mark.slow

# A run ends within 60 s of such a fault; two of them at a time, on a busy machine, take longer.
LONGEST_SECONDS = 150
# A process of Ray is called as what it does now.
REDUCER, HEAD = ("ray::ReducerActor", "ray::journal"), ("gcs_server",)
NODE = ("raylet/raylet",)
# Several views of each picture, each a small one.
SETTINGS = ("dataset=wider_val", "dataset.limit=40", "backend=openvino", "preprocess.size=own")
SETTINGS += ("preprocess.scales=[0.1,0.2]", "preprocess.flip=true")
GATED = ("backend.name=tests.fakes.gated:GatedBackend",)


def process_named(parent: int, names: tuple[str, ...], must: bool = True) -> int:
    """The process of a command whose command line begins with a name, or a path that ends so."""
    for one in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            first = " ".join(one.cmdline()).split(" --")[0]
            if first.startswith(names) or first.endswith(names):
                return one.pid
    assert not must, f"no {names}"
    return 0


# Starts a cluster of a node of one CPU, prints its address and adds a node for each further line of
# its input, whose raylet it prints. A line that names a folder: that node does not see it.
NODES = """
import ctypes, subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
print(cluster.address, flush=True)
for line in sys.stdin:
    if folder := line.strip():
        if ctypes.CDLL(None).unshare(0x20000):  # a mount namespace of this process's own
            sys.exit("no namespaces here")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    node = cluster.add_node(num_cpus=1)
    print(node.all_processes["raylet"][0].process.pid, flush=True)
cluster.shutdown()
"""
# A head soon knows that a node is gone.
IMPATIENCE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.fixture
def gate(tmp_path, monkeypatch) -> Path:
    """The file that lets the devices of this test go on; they find `GatedBackend`."""
    monkeypatch.setenv(GATE, str(tmp_path / "gate"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    return tmp_path / "gate"


class Nodes:
    """A cluster on this machine.

    Attributes:
        process: It ends with this process's input.
        address: Where its head listens.
    """

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.address = self._said(r"\S+:\d+")

    def add(self, hidden: Path | None = None) -> int:
        """Add a node, which may not see a folder; returns its raylet's process."""
        self.process.stdin.write(f"{hidden or ''}\n")
        self.process.stdin.flush()
        return int(self._said(r"\d+"))

    def _said(self, pattern: str) -> str:
        lines = map(str.strip, self.process.stdout)
        return next(line for line in lines if re.fullmatch(pattern, line))


@pytest.fixture
def nodes(gate) -> Iterator[Nodes]:
    """A cluster of one node."""
    with subprocess.Popen(
        [sys.executable, "-c", NODES],
        env=os.environ | IMPATIENCE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield Nodes(process)
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def wait_for(process: subprocess.Popen, holds: Callable[[], object]) -> None:
    """Wait until something holds while a command goes on."""
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def with_journal(process: subprocess.Popen, output: Path, segment: int = 0) -> None:
    """Wait until a command has detections on disk, in a segment of its journal."""
    part = output / "journal" / f"segment-{segment:04}.arrow"
    wait_for(process, lambda: part.exists() and part.stat().st_size)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A command with a folder "disturbed"."""
    return subprocess.Popen(
        [sys.executable, PROJECT / "main.py", "output_dir=disturbed", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def predictions(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "predictions").rglob("*.txt"), folder / "predictions.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A data set of which one of the last pictures that are wanted is damaged."""
    sample = ensure_sample(SAMPLE_FOLDER)
    root = shutil.copytree(sample.root, tmp_path / "pictures")
    damaged = sorted(root.rglob("*.jpg"))[35]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    return root


@pytest.fixture
def settings(pictures) -> tuple[str, ...]:
    truth = ensure_sample(SAMPLE_FOLDER).ground_truth
    return (*SETTINGS, f"dataset.root={pictures}", f"dataset.ground_truth={truth}")


@pytest.fixture
def whole(warm_command, tmp_path, settings) -> tuple[dict[str, bytes], dict]:
    """The predictions of an undisturbed run, and its results."""
    done = warm_command(*settings, "output_dir=whole")
    assert done.returncode == 3, done.stderr
    return predictions(tmp_path / "whole"), results_of(tmp_path / "whole")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def events_of(folder: Path, whole: tuple[dict[str, bytes], dict]) -> list[dict]:
    """What happened in a run whose predictions are those of the undisturbed one."""
    files, undisturbed = whole
    assert len(files) == 40
    assert predictions(folder) == files
    results = results_of(folder)
    for key in ("pictures", "failures", "ap"):
        assert results[key] == undisturbed[key]
    assert results["pictures"] == {"total": 40, "done": 39, "failed": 1}
    return results["events"]


@pytest.mark.skipif(os.getuid() != 0, reason="namespaces need the superuser")
def test_nodes_come_and_go_and_one_does_not_see_the_pictures(
    tmp_path, settings, pictures, whole, nodes, gate
):
    """One run: its reducer dies, a node joins and is lost, and one joins that sees no picture."""
    log = tmp_path / "disturbed" / "run.log"

    def noted(what: str) -> bool:
        return log.exists() and f"{what}: " in log.read_text()

    with start(
        tmp_path, *settings, *GATED, f"cluster.address={nodes.address}", "cluster.wait_s=60"
    ) as process:
        with_journal(process, tmp_path / "disturbed")
        os.kill(process_named(nodes.process.pid, REDUCER), signal.SIGKILL)
        node = psutil.Process(nodes.add())
        wait_for(process, lambda: noted("device_added") and noted("reducer_restarted"))
        lost = [node, *node.children(recursive=True)]
        for one in lost:
            one.kill()
        wait_for(process, lambda: noted("device_lost") and noted("node_lost"))
        nodes.add(pictures)
        wait_for(process, lambda: noted("device_set_aside"))
        gate.touch()
        said = process.communicate(timeout=LONGEST_SECONDS)
        assert process.returncode == 3, said
    events = events_of(tmp_path / "disturbed", whole)
    expected = {"reducer_restarted", "device_added", "device_lost", "node_lost", "device_failed"}
    assert {one["what"] for one in events} == expected | {"device_set_aside"}
    blind = [one for one in events if one["what"] == "device_failed"]
    assert {one["host"] for one in blind} == {os.uname().nodename}
    assert all("which the driver can (cannot be read: No such file" in one["text"] for one in blind)


@pytest.fixture
def disturbed(tmp_path) -> Callable[..., tuple[subprocess.CompletedProcess, float]]:
    """Runs a command, and signals one of its processes once detections are on disk.

    Gives what became of the command, and the seconds from the signal to its end.
    """

    def run(name: str, number: int, *arguments: str, folder: str = "disturbed") -> tuple:
        with start(tmp_path, *arguments) as process:
            with_journal(process, tmp_path / folder)
            os.kill(process_named(process.pid, name), number)
            began = time.monotonic()
            said = process.communicate(timeout=LONGEST_SECONDS + 60)
            done = subprocess.CompletedProcess(process.args, process.returncode, *said)
            return done, time.monotonic() - began

    return run


@pytest.mark.skipif(not IS_LONG, reason="tests/distributed/test_watch.py stops one that is small")
def test_a_reducer_that_hangs_changes_no_byte(disturbed, tmp_path, settings, whole):
    done, seconds = disturbed(REDUCER, signal.SIGSTOP, *settings, "dataset.repeat=12")
    assert done.returncode == 3, done.stderr
    assert seconds < LONGEST_SECONDS
    (event,) = events_of(tmp_path / "disturbed", whole)
    assert event["what"] == "reducer_restarted"


@pytest.mark.skipif(not IS_LONG, reason="tests/distributed/test_guard.py says such a line")
@pytest.mark.parametrize("name", [NODE, HEAD])
def test_a_process_of_ray_that_ends_as_ray_starts(tmp_path, name):
    """Some tenths of a second after Ray's node process is there."""
    for tenths in (0, 1, 2, 3, 5, 8, 12, 20):
        folder = tmp_path / str(tenths)
        folder.mkdir()
        with start(folder, "backend=simulated", "backend.latency_ms=1") as process:
            wait_for(process, lambda at=process.pid: process_named(at, NODE, must=False))
            time.sleep(tenths / 10)
            target = process_named(process.pid, name, must=False)
            if target:
                os.kill(target, signal.SIGKILL)
            _, said = process.communicate(timeout=300)  # Ray's own longest wait is 180 s
        is_whole = (folder / "disturbed" / "results.json").exists()
        assert is_whole or target  # it may have ended before
        assert process.returncode == (0 if is_whole else 1)
        assert is_whole or "; go on with: " in said
        assert len(said.splitlines()) == (0 if is_whole else 1)


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


def test_a_lost_head_fails_one_run_of_a_sweep_which_then_goes_on(disturbed, warm_command, tmp_path):
    settings = ("backend=simulated", "dataset.limit=20")
    changed = ("-m", "backend.latency_ms=200", "dataset.repeat=4,1", "cluster.wait_s=2")
    run = (HEAD, signal.SIGKILL, *settings, *changed)
    done, seconds = disturbed(*run, folder="disturbed/0")
    assert done.returncode == 1
    assert seconds < LONGEST_SECONDS
    lines = [line for line in done.stderr.splitlines() if line.startswith("cfdist: ")]
    assert len(lines) == 1, (done.stdout, done.stderr)
    assert "the head of the Ray cluster" in lines[0]
    assert "Traceback" not in done.stderr
    resumed = (*settings, "backend.latency_ms=0", "dataset.repeat=4", "output_dir=disturbed/0")
    done = warm_command(*resumed)
    assert done.returncode == 0, done.stderr
    for number in "01":
        results = json.loads((tmp_path / "disturbed" / number / "results.json").read_text())
        assert results["pictures"] == {"total": 20, "done": 20, "failed": 0}
        assert number == "1" or any("were done by an earlier" in one for one in results["notes"])

"""Whole commands that leave their Ray session to the next one."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray._private.utils import read_ray_address

from cfdist.distributed.joining import answer_of, find_address, own_token
from cfdist.errors import UserError
from tests.conftest import PROJECT

pytestmark = pytest.mark.slow

QUICK = ["backend=simulated", "backend.latency_ms=0", "dataset.limit=8"]
BEGUN = "starting job=evaluate ...\n"
TAKEN = "using the Ray session that an earlier command left ...\n"


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """Where the records are; sessions that a test has left are ended."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "cfdist"
    yield folder
    for record in folder.glob("*.json"):
        content = json.loads(record.read_text())
        record.unlink()
        wait_for(lambda gone=content: not Path(gone["folder"]).exists())


def wait_for(holds, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds()


def the_record(runtime: Path) -> dict:
    (path,) = runtime.glob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return json.loads(path.read_text())


def marked(mark: str) -> list[psutil.Process]:
    """The session's processes."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CFDIST_MARK") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def waiting(mark: str) -> set[int]:
    """The two processes that wait for the next command's actors, once they are there."""

    def found() -> set[int]:
        return {one.pid for one in marked(mark) if one.cmdline()[:1] == ["ray::IDLE"]}

    wait_for(lambda: len(found()) == 2)
    return found()


def files(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*.txt")}


def test_a_session_serves_the_next_commands_and_ends_when_told(command, runtime, tmp_path):
    real = ["dataset.limit=3", "model.height=96", "model.width=96", "backend=onnxruntime"]
    for name, settings in {
        "cold": [],
        "first": ["cluster.keep_minutes=5"],
        "second": ["cluster.keep_minutes=5"],
        "third": [],
    }.items():
        result = command(*real, *settings, f"output_dir={name}")
        assert result.returncode == 0, result.stderr
        expected = TAKEN if name in ("second", "third") else "starting Ray ...\n"
        assert result.stdout.startswith(BEGUN + expected)
        if name == "first":
            record = the_record(runtime)
            ready = waiting(record["mark"])
        if name == "second":
            assert ready.isdisjoint(waiting(record["mark"]))  # it has used them up
    assert the_record(runtime) == record
    assert files(tmp_path / "cold") == files(tmp_path / "second") == files(tmp_path / "third")
    assert len(files(tmp_path / "cold")) == 3
    # Other programs of this user do not find it, nor are they let in.
    assert read_ray_address() != record["address"]
    token = Path(record["token"]).read_text()
    answers = [answer_of(record["address"], one) for one in ("", own_token(), token)]
    assert answers == ["UNAUTHENTICATED", "UNAUTHENTICATED", "OK"]
    try:
        found = find_address("auto")  # a cluster that another test has started
    except UserError:
        found = None
    assert found != record["address"]
    last = command(*QUICK, "cluster.keep_minutes=0", "output_dir=last")
    assert last.returncode == 0
    assert last.stdout.startswith(BEGUN + "starting Ray ...\n")
    assert not [*runtime.glob("*.json")]
    assert not Path(record["folder"]).exists()
    assert not marked(record["mark"])


def test_what_is_killed_leaves_a_session_that_can_be_used_or_replaced(command, runtime, tmp_path):
    keep = [*QUICK, "cluster.keep_minutes=5"]
    assert command(*keep, "output_dir=a").returncode == 0
    before = the_record(runtime)
    # A command that is killed while it uses the session, and one beside it.
    slow = ["dataset.limit=16", "dataset.repeat=8", "backend=simulated", "backend.latency_ms=300"]
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *slow, "output_dir=killed"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert [process.stdout.readline() for _ in range(2)] == [BEGUN, TAKEN]
    beside = command(*keep, "output_dir=b")
    assert (beside.returncode, beside.stdout.splitlines()[1]) == (0, "starting Ray ...")
    wait_for(lambda: [*(tmp_path / "killed").glob("journal/segment*")])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert the_record(runtime) == before
    # Going on with it works in the same session.
    resumed = command("resume=killed")
    assert (resumed.returncode, resumed.stdout.splitlines()[1] + "\n") == (0, TAKEN)
    # A session whose node process has died is replaced, with a note.
    for one in marked(before["mark"]):
        if "raylet/raylet" in one.cmdline()[0]:
            one.kill()
    replaced = command(*keep, "output_dir=c")
    assert replaced.returncode == 0, replaced.stderr
    assert replaced.stdout.splitlines()[1:3] == [
        "note: the Ray session that an earlier command left has ended",
        "starting Ray ...",
    ]
    assert the_record(runtime) != before
    wait_for(lambda: not Path(before["folder"]).exists())

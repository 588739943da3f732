"""Signals end a command within seconds at any moment, and leave nothing but what goes on.

Real commands, real signals. `CFDIST_LONG_TESTS=1` tries every signal in every phase, kills ten
times as often, and is strict about each second; its last figures are in docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cfdist.distributed.guard import PREFIX
from tests.conftest import PROJECT
from tests.faults import IS_LONG

pytestmark = pytest.mark.slow

AT_ONCE = 2  # commands at a time

MARK = "CFDIST_TEST_COMMAND"  # in the environment of a command and all that it starts
QUIET = ("cluster.dashboard=false", "output_dir=out")
SIMULATED = ("backend=simulated", "devices=2", *QUIET)
REAL = ("backend=openvino", "model.height=128", "model.width=128", *QUIET)

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SECONDS_TO_END = 5
# A command that has to share its processors with other work may take longer now and then.
LONGEST_SECONDS_TO_END = SECONDS_TO_END if IS_LONG else 20
SECONDS_TO_CLEAN = 10 if IS_LONG else 30


class Command:
    """A command in a process group of its own, with a folder and a temporary folder."""

    def __init__(self, folder: Path, *arguments: str, nohup: bool = False, **others: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix="cf", dir="/tmp"))
        self.mark = uuid.uuid4().hex
        self.earlier = set(self.segments())
        self.output = folder / "stdout"
        self.errors = folder / "stderr"
        ignored = signal.SIG_IGN if nohup else signal.SIG_DFL

        def as_a_shell_does() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, ignored)

        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(PROJECT / "main.py"), *arguments],
                cwd=folder, stdout=output, stderr=errors, start_new_session=True,
                env=os.environ | {MARK: self.mark, "TMPDIR": str(self.temporary)} | others,
                preexec_fn=as_a_shell_does,
            )  # fmt: skip

    def wait_until(self, happens: Callable[[Command], bool]) -> None:
        deadline = time.monotonic() + 300
        while not happens(self) and self.process.poll() is None:
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.01)

    def segments(self) -> Iterator[Path]:
        """The files of the run's journal; each command begins one."""
        return self.folder.glob("out/**/journal/segment-*")

    def signal(self, number: int, to: str = "process") -> None:
        """Signal the process, its group, or all that it has started and then the process."""
        if to == "all":  # as `systemctl stop` and `ray job stop` do, in the worst order
            for one in self.processes():
                if one != self.process.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, number)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to == "group" else os.kill)(self.process.pid, number)

    def seconds_to_end(self) -> float:
        began = time.monotonic()
        self.process.wait(timeout=100)
        return time.monotonic() - began

    def left(self) -> list[str]:
        """Processes and temporary files that are there, once they should not be."""
        deadline = time.monotonic() + SECONDS_TO_CLEAN
        while (found := [*self._left()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(self.temporary)
        return found

    def processes(self) -> Iterator[int]:
        """The command's process and all that it has started."""
        mark = f"{MARK}={self.mark}".encode()
        for process in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if mark in Path("/proc", process, "environ").read_bytes().split(b"\0"):
                    yield int(process)

    def _left(self) -> Iterator[str]:
        for process in self.processes():
            with contextlib.suppress(OSError):
                yield f"{process}: {Path('/proc', str(process), 'cmdline').read_text()}"
        yield from (str(path) for path in self.temporary.iterdir())


def has_begun(command: Command) -> bool:
    return command.process.poll() is None


def is_starting_ray(command: Command) -> bool:
    return any(command.temporary.glob(f"{PREFIX}*/session_*/logs/gcs_server.out"))


def has_devices(command: Command) -> bool:
    return b"devices x" in command.output.read_bytes()


def is_running(command: Command) -> bool:
    return any(
        path.stat().st_size > 1_000 for path in command.segments() if path not in command.earlier
    )


def is_finishing(command: Command) -> bool:
    return len([*command.folder.glob("out/predictions/*/*.txt")]) == 69


PHASES = {
    "imports": (has_begun, SIMULATED),
    "starting Ray": (is_starting_ray, SIMULATED),
    "loading": (has_devices, SIMULATED),
    "running": (is_running, (*SIMULATED, "backend.latency_ms=500")),
    "finishing": (is_finishing, SIMULATED),
}


# Each signal and each receiver in some phase; the long test tries all in each.
SHORT = {
    "imports": [(signal.SIGINT, "process")],
    "starting Ray": [(signal.SIGTERM, "group")],
    "loading": [(signal.SIGHUP, "group")],
    "running": [(signal.SIGTERM, "process"), (signal.SIGTERM, "all")],
    "finishing": [(signal.SIGINT, "group")],
}


def interrupt(folder: Path, phase: str, number: int, to: str) -> tuple[str, float]:
    """What is wrong with how a command ended (nothing: empty), and in how many seconds it did."""
    happens, arguments = PHASES[phase]
    latency = () if "latency" in arguments[-1] else ("backend.latency_ms=1",)
    command = Command(folder, *arguments, *latency)
    command.wait_until(happens)
    time.sleep(random.Random(f"{phase} {number} {to}").uniform(0.1, 0.4))
    command.signal(number, to)
    seconds = command.seconds_to_end()
    code, lines = command.process.returncode, command.errors.read_text().splitlines()
    is_done = phase == "finishing" and code == 0 and (folder / "out/results.json").is_file()
    # In its first moments, while Python reads its files, the process is like any other.
    is_done |= phase == "imports" and code == -number and not lines
    problems = [
        f"it took {seconds:.1f} s" if seconds > LONGEST_SECONDS_TO_END else "",
        "" if is_done or code == CODES[signal.Signals(number)] else f"exit code {code}",
        "" if is_done or len(lines) == 1 else f"it said {lines}",
        *command.left(),
    ]
    return "; ".join(filter(None, problems)), seconds


@pytest.mark.parametrize("phase", PHASES)
def test_each_signal_ends_a_command_within_seconds(tmp_path, phase):
    cases = SHORT[phase]
    if IS_LONG:
        cases = [(number, to) for number in CODES for to in ("process", "group")]
        cases += [(signal.SIGTERM, "all")] if phase == "running" else []

    def run(case: tuple[int, tuple[int, str]]) -> tuple[str, float]:
        return interrupt(tmp_path / str(case[0]), phase, *case[1])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(run, enumerate(cases)))
    good = sum(not problems for problems, _ in found)
    seconds = sorted(seconds for _, seconds in found)
    print(f"{phase}: {good} of {len(found)}, at most {seconds[-1]:.1f} s")
    assert [problems for problems, _ in found if problems] == []
    assert seconds[len(seconds) // 2] < SECONDS_TO_END


def bytes_of(folder: Path) -> dict[str, str]:
    """The digest of each file that a run leaves which is the same for the same settings."""
    files = [folder / "predictions.parquet", *sorted((folder / "predictions").rglob("*.txt"))]
    digests = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    results = json.loads((folder / "results.json").read_text())
    return digests | {"ap": json.dumps(results["ap"])}


def test_killed_again_and_again_a_run_ends_with_the_same_bytes(tmp_path):
    whole = Command(tmp_path / "whole", *REAL)
    began = time.monotonic()
    whole.process.wait(timeout=600)
    usual = time.monotonic() - began
    assert whole.process.returncode == 0, whole.errors.read_text()
    assert whole.left() == []
    expected = bytes_of(tmp_path / "whole" / "out")

    kills, finished, moments = 20 if IS_LONG else 2, 0, random.Random(1)
    folder = tmp_path / "killed"
    for kill in range(kills):
        command = Command(folder, *REAL)
        if kill % 2 == 0:  # most of a short command is its start
            command.wait_until(is_running)
            time.sleep(moments.uniform(0, 1))
        else:
            time.sleep(moments.uniform(0, usual))
        command.signal(signal.SIGKILL, ("process", "group")[(kill + 1) // 2 % 2])
        command.process.wait(timeout=60)
        assert command.left() == []
        if (folder / "out" / "results.json").is_file():
            assert bytes_of(folder / "out") == expected
            finished += 1
            shutil.rmtree(folder)
    command = Command(folder, *REAL)
    assert command.process.wait(timeout=600) == 0, command.errors.read_text()
    assert command.left() == []
    assert bytes_of(folder / "out") == expected
    print(f"{kills} of {kills} kills left nothing; {finished + 1} of {finished + 1} runs identical")


def test_a_second_ctrl_c_ends_at_once_and_many_print_one_line(tmp_path):
    command = Command(tmp_path / "run", *SIMULATED, "backend.latency_ms=500")
    command.wait_until(is_running)
    for _ in range(4):
        command.signal(signal.SIGINT, "group")
        time.sleep(0.15)
    assert command.seconds_to_end() < LONGEST_SECONDS_TO_END
    assert command.process.returncode == 130
    (line,) = command.errors.read_text().splitlines()
    assert line.startswith("cfdist: interrupted; ")
    assert command.left() == []


def test_nohup_keeps_a_run_from_ending_with_its_terminal(tmp_path):
    command = Command(tmp_path / "run", *SIMULATED, "backend.latency_ms=20", nohup=True)
    command.wait_until(is_running)
    command.signal(signal.SIGHUP, "group")
    assert command.process.wait(timeout=600) == 0, command.errors.read_text()
    assert command.left() == []


def test_a_sweep_is_interrupted_between_its_runs_and_goes_on_as_it_says(tmp_path):
    folder = tmp_path / "run"
    command = Command(folder, "-m", *SIMULATED, "backend.latency_ms=1,2,3")
    command.wait_until(lambda _: (folder / "out" / "0" / "results.json").exists())
    command.signal(signal.SIGINT, "group")
    assert command.seconds_to_end() < LONGEST_SECONDS_TO_END
    assert command.process.returncode == 130
    (line,) = command.errors.read_text().splitlines()
    assert command.left() == []
    first = (folder / "out" / "0" / "results.json").read_bytes()

    words = shlex.split(line.partition("; go on with: ")[2])
    assert words[:2] == [sys.executable, str(PROJECT / "main.py")]
    command = Command(folder, *words[2:])
    assert command.process.wait(timeout=600) == 0, command.errors.read_text()
    assert command.left() == []
    assert (folder / "out" / "0" / "results.json").read_bytes() == first
    assert all((folder / "out" / run / "results.json").is_file() for run in "12")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_atc_and_its_compilers_end_with_the_command(tmp_path, number):
    atc = tmp_path / "bin" / "atc"
    atc.parent.mkdir()
    atc.write_text(f"#!/bin/sh\nsetsid sleep 300 &\ntouch {tmp_path}/started\nsleep 300\n")
    atc.chmod(0o700)
    command = Command(
        tmp_path / "run",
        *(
            "job=convert",
            "convert.output=om",
            "convert.soc_version=Ascend310P3",
            "convert.batches=[1]",
        ),
        *("model.height=64", "model.width=64", "output_dir=out"),
        PATH=f"{atc.parent}:{os.environ['PATH']}",
    )
    command.wait_until(lambda _: (tmp_path / "started").exists())
    command.signal(number)
    assert command.seconds_to_end() < LONGEST_SECONDS_TO_END, command.errors.read_text()
    assert command.process.returncode in (143, -signal.SIGKILL), command.errors.read_text()
    assert command.left() == []

"""Cores and memory within container limits, and what a process has used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cfdist.machine import (
    available_cores,
    available_memory,
    cpu_model,
    peak_memory,
    pip_install,
    process_times,
    reset_peak_memory,
    seconds_between,
)


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Relative path -> content."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_quota(tmp_path, files, expected):
    unlimited = available_cores(tmp_path / "none")
    write_files(tmp_path, files)
    assert available_cores(tmp_path) == (expected or unlimited)
    assert unlimited >= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Some Xeon @ 2.5GHz\nmodel name\t: another\n",
         "Some Xeon @ 2.5GHz"),
        ("processor\t: 0\nBogoMIPS\t: 200\n\nHardware\t: Kunpeng 920\n", "Kunpeng 920"),
        ("model name\t:\n", None),
        (None, None),
    ],
)  # fmt: skip
def test_the_processor_has_a_name(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    name = cpu_model(tmp_path / "cpuinfo")
    assert name == (expected or platform.processor() or platform.machine())
    assert name


FREE = 4_000_000_000
V2_STAT = "anon 700\nfile 9000\ninactive_file 200\nactive_file 100\ninactive_anon 50\n"
# Without "total_": of the folder alone, not of those below it.
V1_STAT = "inactive_file 1\nactive_file 2\ntotal_inactive_file 200\ntotal_active_file 100\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "2000\n", "memory.current": "1000\n", "memory.stat": V2_STAT}, 1300),
        ({"memory.max": "1000", "memory.current": "1000", "memory.stat": V2_STAT}, 300),
        ({"memory.max": "1000", "memory.current": "1400", "memory.stat": V2_STAT}, 0),
        # The counters are not read at one moment: no more than the limit is ever free.
        ({"memory.max": "1000", "memory.current": "200", "memory.stat": V2_STAT}, 1000),
        ({"memory.max": "2000", "memory.current": "1000"}, 1000),
        ({"memory.max": "2000", "memory.current": "1000", "memory.stat": "nonsense"}, 1000),
        ({"memory.max": "max", "memory.current": "1000", "memory.stat": V2_STAT}, FREE),
        ({"memory.max": "9000000000", "memory.current": "1000"}, FREE),
        (
            {
                "memory/memory.limit_in_bytes": "2000",
                "memory/memory.usage_in_bytes": "1000",
                "memory/memory.stat": V1_STAT,
            },
            1300,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",  # none, says the kernel
                "memory/memory.usage_in_bytes": "1000",
                "memory/memory.stat": V1_STAT,
            },
            FREE,
        ),
        ({"memory.max": "nonsense"}, FREE),
        ({}, FREE),
    ],
)
def test_memory_within_the_container_s_limit(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=FREE))
    write_files(tmp_path, files)
    assert available_memory(tmp_path) == expected


# Where a process is, as /proc/self/cgroup has it -> files that limit it to a core and 1300 bytes.
LIMITED_BELOW_THE_TOP = {
    "v2, its own group": (
        "0::/user.slice/run.scope\n",
        {
            "user.slice/run.scope/cpu.max": "100000 100000",
            "user.slice/run.scope/memory.max": "2000",
            "user.slice/run.scope/memory.current": "1000",
            "user.slice/run.scope/memory.stat": V2_STAT,
        },
    ),
    "v2, a group above it": (
        "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n",
        {
            "system.slice/slurmstepd.scope/job_7/cpu.max": "100000 100000",
            "system.slice/slurmstepd.scope/job_7/memory.max": "2000",
            "system.slice/slurmstepd.scope/job_7/memory.current": "1000",
            "system.slice/slurmstepd.scope/job_7/memory.stat": V2_STAT,
            "system.slice/slurmstepd.scope/job_7/step_0/cpu.max": "max 100000",
            "system.slice/slurmstepd.scope/job_7/step_0/memory.max": "max",
            "system.slice/slurmstepd.scope/job_7/step_0/memory.current": "900",
        },
    ),
    "v2, the kernel slows down from here": (
        "0::/run.scope\n",
        {
            "run.scope/cpu.max": "150000 100000",
            "run.scope/memory.max": "max",
            "run.scope/memory.high": "2000",
            "run.scope/memory.current": "1000",
            "run.scope/memory.stat": V2_STAT,
        },
    ),
    "v1": (
        "5:memory:/slurm/job_7\n4:cpu,cpuacct:/slurm/job_7/step_0\n1:name=systemd:/x\n0::/\n",
        {
            "cpu/slurm/job_7/cpu.cfs_quota_us": "100000",
            "cpu/slurm/job_7/cpu.cfs_period_us": "100000",
            "cpu/slurm/job_7/step_0/cpu.cfs_quota_us": "-1",
            "cpu/slurm/job_7/step_0/cpu.cfs_period_us": "100000",
            "memory/slurm/job_7/memory.limit_in_bytes": "2000",
            "memory/slurm/job_7/memory.usage_in_bytes": "1000",
            "memory/slurm/job_7/memory.stat": V1_STAT,
        },
    ),
    "v1 without links": (
        "5:memory:/a\n4:cpu,cpuacct:/a\n",
        {
            "cpu,cpuacct/a/cpu.cfs_quota_us": "100000",
            "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "memory/a/memory.limit_in_bytes": "2000",
            "memory/a/memory.usage_in_bytes": "1000",
            "memory/a/memory.stat": V1_STAT,
        },
    ),
    "both": (
        "4:memory:/\n0::/run.scope\n",
        {
            "unified/run.scope/cpu.max": "100000 100000",
            "memory/memory.limit_in_bytes": "2000",
            "memory/memory.usage_in_bytes": "1000",
            "memory/memory.stat": V1_STAT,
        },
    ),
    "a path of the host's, seen from a container": (
        "0::/docker/0123\n",
        {
            "cpu.max": "100000 100000",
            "memory.max": "2000",
            "memory.current": "1000",
            "memory.stat": V2_STAT,
        },
    ),
    "outside of the namespace": (
        "0::/../sibling\n",
        {
            "cpu.max": "100000 100000",
            "memory.max": "2000",
            "memory.current": "1000",
            "memory.stat": V2_STAT,
        },
    ),
}


@pytest.mark.parametrize("case", LIMITED_BELOW_THE_TOP)
def test_a_limit_of_any_level_counts(tmp_path, monkeypatch, case):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=FREE))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    membership, files = LIMITED_BELOW_THE_TOP[case]
    tree, where = tmp_path / "tree", tmp_path / "membership"
    write_files(tree, files)
    where.write_text(membership)
    assert available_cores(tree, where) == 1
    assert available_memory(tree, where) == 1300
    where.write_text("0::/another\n1:cpu,memory:/another\n")
    is_at_the_top = any("/" not in name for name in files)
    assert (available_cores(tree, where) == 1) == is_at_the_top


@pytest.mark.parametrize("content", [None, "", "nonsense\n", "0::\n", ":::\n", "a:b\n0::/x\n"])
def test_a_membership_that_says_nothing_leaves_the_topmost_group(tmp_path, content):
    write_files(tmp_path, {"cpu.max": "100000 100000"})
    where = tmp_path / "membership"
    if content is not None:
        where.write_text(content)
    assert available_cores(tmp_path, where) == 1


def test_memory():
    assert available_memory() > 0


def python(code: str) -> list[float]:
    """Numbers that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_a_process_knows_its_age():
    start = time.perf_counter()
    (age,) = python(
        "import time; time.sleep(0.5); from cfdist.machine import process_age; print(process_age())"
    )
    # The kernel counts in hundredths of a second.
    assert 0.48 <= age <= time.perf_counter() - start + 0.02


@pytest.mark.slow
def test_peak_memory_is_in_bytes_and_does_not_fall():
    before, after = python(
        "from cfdist.machine import peak_memory as peak; before = peak();"
        "block = b'x' * 200_000_000; del block; print(before, peak())"
    )
    assert 150e6 < after - before < 250e6


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel keeps a process's peak"
)
def test_a_peak_after_a_reset_leaves_out_what_was_freed_before():
    before, high, after = python(
        "from cfdist.machine import peak_memory as peak, reset_peak_memory; before = peak();"
        "block = b'x' * 200_000_000; del block; high = peak(); reset_peak_memory();"
        "print(before, high, peak())"
    )
    assert high - before > 150e6
    assert after < high - 150e6


def test_a_peak_that_cannot_be_reset_is_no_error(monkeypatch):
    asked = []

    def refuse(path: Path, content: str) -> None:
        asked.append((str(path), content))
        raise PermissionError("read-only")

    before = peak_memory()
    monkeypatch.setattr(Path, "write_text", refuse)
    reset_peak_memory()
    assert asked == [("/proc/self/clear_refs", "5")]
    assert peak_memory() >= before


# Half a second of work, then waits to be told to end.
WORK = """
import sys, time
while time.process_time() < 0.5:
    pass
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_what_a_child_works_counts_and_what_was_before_does_not():
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        before = process_times()
        process.stdout.readline()
        after = process_times()
        process.stdin.close()
    assert {pid for pid, _ in after} >= {process.pid}
    # All of the child's time but what it had before the first look.
    worked = 0.5 - sum(seconds for (pid, _), seconds in before.items() if pid == process.pid)
    assert seconds_between(before, after) >= worked - 0.05


def test_differences_are_by_process_and_not_by_its_number():
    before = {(1, 10.0): 5.0, (2, 10.0): 1.0, (3, 10.0): 7.0}
    after = {(1, 10.0): 6.0, (2, 20.0): 4.0, (4, 30.0): 0.5}
    assert seconds_between(before, after) == 1.0 + 4.0 + 0.5


def test_packages_are_installed_for_this_python(monkeypatch, tmp_path):
    """Who has called ./run.sh has no `pip` of its environment, and may be anywhere."""
    project = Path(__file__).resolve().parent.parent
    environment = tmp_path / ".venv"
    environment.mkdir()
    write_files(environment, {"bin/pip": ""})
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.chdir(tmp_path)
    torch = project / "requirements-torch.txt"
    assert pip_install(torch.name) == f"`.venv/bin/pip install -r {torch}`"
    monkeypatch.chdir(project)
    assert pip_install(torch.name, "--no-deps") == (
        f"`{environment}/bin/pip install --no-deps -r requirements-torch.txt`"
    )
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert pip_install(torch.name) == "`pip install -r requirements-torch.txt`"

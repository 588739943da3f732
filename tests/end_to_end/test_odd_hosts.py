"""Whole commands on hosts that are not like the developer's: what works, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.fakes.ascend import install_atc, install_double, install_npu_smi

SIMULATED = ("backend=simulated", "backend.latency_ms=0", "dataset.limit=4")
SIZE = ("model.height=64", "model.width=64")


def refusal(result: subprocess.CompletedProcess) -> str:
    """The one line of a command that was refused before it did anything."""
    assert result.returncode == 2, result.stderr
    assert all(line.startswith("starting ") for line in result.stdout.splitlines())
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def eight_chips(monkeypatch, tmp_path, command) -> Path:
    """A host with eight chips, of which a scheduler allots 4 and 5; gives the chips' log."""
    install_double(monkeypatch, "later")
    install_atc(monkeypatch, tmp_path / "bin")
    install_npu_smi(monkeypatch, tmp_path / "bin", chips=8)
    log = tmp_path / "chips.log"
    monkeypatch.setenv("AIS_BENCH_DOUBLE_LOG", str(log))
    monkeypatch.setenv("AIS_BENCH_DOUBLE_DEVICES", "8")
    made = command("job=convert", "convert.output=om", "convert.batches=[1]", *SIZE)
    assert made.returncode == 0, made.stderr
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4,5")
    return log


def test_devices_count_within_what_a_scheduler_allots(command, tmp_path, monkeypatch, eight_chips):
    run = ("model.path=om/centerface_bs1.om", "dataset.limit=4", *SIZE)

    def opened(*arguments: str) -> tuple[list[int], list[str]]:
        """The chips that a run opened, and those that its results name."""
        eight_chips.unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        result = command(*run, *arguments, "output_dir=out")
        assert result.returncode == 0, result.stderr
        chips = [json.loads(line)["chip"] for line in eight_chips.read_text().splitlines()]
        devices = json.loads((tmp_path / "out" / "results.json").read_text())["devices"]
        return sorted(chips), sorted(device["chip"] for device in devices)

    assert opened("devices=[1]") == ([5], ["5"])
    # Ray is told to mask nothing: each device sees its own chip all the same.
    monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES", "1")
    assert opened("devices=2") == ([4, 5], ["4", "5"])

    line = refusal(command(*run, "devices=[0,7]", "output_dir=refused"))
    assert "devices=[0, 7]: there is no NPU 7; ASCEND_RT_VISIBLE_DEVICES=4,5 allots 2" in line
    assert not (tmp_path / "refused").exists()


PLAYED = """
import os, ray
from cfdist.backends.simulated import SimulatedBackend

class Played(SimulatedBackend):
    def __init__(self, spec, settings):
        super().__init__(spec, settings)
        has = ray.get_runtime_context().get_assigned_resources()["GPU"]
        self.runs_on = f"{has} of {os.environ['CUDA_VISIBLE_DEVICES']}"

    @classmethod
    def device_kind(cls, options):
        return "gpu"
"""


def test_devices_share_a_gpu(command, tmp_path, monkeypatch):
    (tmp_path / "played.py").write_text(PLAYED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")  # Ray is then told how many there are
    run = (*SIMULATED[1:], "backend.name=played:Played", *SIZE, "output_dir=out", "devices=2")
    result = command(*run, "backend.gpus_per_device=0.5")
    assert result.returncode == 0, result.stderr
    devices = json.loads((tmp_path / "out" / "results.json").read_text())["devices"]
    assert [one["runs_on"] for one in devices] == ["0.5 of MIG-a"] * 2


def test_a_long_temporary_folder_and_uv_are_no_obstacles(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    # To Ray, the parent of the command is `uv run`; the workers it would start fail.
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    result = subprocess.run(
        ["uv", "run", sys.executable, PROJECT / "main.py", *SIMULATED, "output_dir=out"],
        executable="/bin/sh", cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "its path is too long for sockets" in (tmp_path / "out" / "run.log").read_text()
    assert list(folder.glob("ray*")) == []


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="this host does not let a test make a network namespace",
)
def test_a_host_without_loopback_is_refused_within_seconds(tmp_path):
    start = time.monotonic()
    result = subprocess.run(
        ["unshare", "-rn", sys.executable, str(PROJECT / "main.py"), *SIMULATED],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "loopback interface does not work" in refusal(result)
    assert time.monotonic() - start < 30


# Holds a session of the command's own until its input ends; says where it is and who can reach it.
SESSION = """
import json, sys
import psutil, ray
from cfdist.distributed.session import session
from cfdist.distributed.starting import token_command
with session(None, dashboard=True) as dashboard:
    address = ray.get_runtime_context().gcs_address
    ray.get(ray.remote(lambda: None).remote())
    me = psutil.Process()
    listening = [
        [process.name(), *connection.laddr]
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == "LISTEN"
    ]
    print(json.dumps([address, dashboard, token_command(), listening]), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def private_session() -> Iterator[list]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-c", SESSION], cwd=PROJECT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(timeout=60)


def test_a_command_s_own_session_is_closed_to_others(
    private_session, command, tmp_path, monkeypatch
):
    address, dashboard, token_command, listening = private_session
    hosts = {host.removeprefix("::ffff:") for _, host, _ in listening}  # IPv4, told as IPv6
    assert hosts == {"127.0.0.1"}, listening
    assert len(listening) > 5  # the head, the node, its agent, the dashboard, a worker
    assert dashboard.startswith("http://127.0.0.1:")
    token = subprocess.run(token_command, shell=True, capture_output=True, text=True).stdout.strip()
    assert len(token) > 20

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no `ray start` of this machine's is noted
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):  # Ray sets the latter in this process
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    named = f"cluster.address={address}"
    assert "asks for its token" in refusal(command(*SIMULATED, named))
    assert time.monotonic() - start < 20
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "belongs to another cfdist command" in refusal(command(*SIMULATED, named))

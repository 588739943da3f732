"""`ray job submit` on a real cluster that asks for a token; a command that finds that cluster."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
SIMULATED = ["backend=simulated", "backend.latency_ms=1", "dataset.limit=8"]
REAL = ["backend=openvino", "model.height=256", "model.width=256", "dataset.limit=8"]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


@dataclass(frozen=True)
class Cluster:
    """A cluster on this machine, and the environment of who may use it."""

    address: str
    dashboard: str
    python: str
    environment: dict[str, str]

    def ray(self, *arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.python, "-m", "ray.scripts.scripts", *arguments],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    def submit(self, *arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess:
        return self.ray("job", "submit", "--address", self.dashboard, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that was started from an environment that is not on its PATH.

    The environment is small, for Ray copies it where a job has one of its own; it has the packages
    of this process's.
    """
    folder = Path(tempfile.mkdtemp(prefix="cf", dir="/tmp"))  # short, for Ray's sockets
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = str(folder / "venv" / "bin" / "python")
    packages = [path for path in sys.path if Path(path).name == "site-packages"]
    place = next((folder / "venv").glob("lib/python3*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in packages]
    (place / "others.pth").write_text("".join(lines))
    bare = folder / "bin"
    bare.mkdir()
    (bare / "python").symlink_to(Path(sys.base_prefix, "bin", "python3"))
    environment = {
        "PATH": f"{bare}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    port, dashboard, client = free_port(), free_port(), free_port()
    started = Cluster("", f"http://127.0.0.1:{dashboard}", python, environment)
    options = [f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder / 'ray'}"]
    options += [f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0"]
    options += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2"]
    process = subprocess.Popen(
        [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "--address='" in line:
                break
        address = "".join(said).partition("--address='")[2].partition("'")[0]
        assert address, "".join(said)
        yield Cluster(address, started.dashboard, python, environment)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        for child in psutil.wait_procs(children, timeout=20)[1]:
            child.kill()
        shutil.rmtree(folder, ignore_errors=True)


def outcome(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "predictions").rglob("*.txt")}


@pytest.mark.parametrize(
    ("options", "script"),
    [
        (
            ["--working-dir", str(PROJECT), "--runtime-env-json", '{"env_vars": {"A": "1"}}'],
            "main.py",
        ),
        ([], str(PROJECT / "main.py")),
        (["--working-dir", ".", "--runtime-env", "deploy/runtime_env.yaml"], "main.py"),
    ],
    ids=["a cluster of its own", "no package", "requirements"],
)
def test_a_submitted_run_leaves_its_results_where_they_were_asked_for(
    cluster, tmp_path, warm_command, options, script
):
    output = tmp_path / "there"
    is_real, is_alone = not options, "--runtime-env-json" in options
    settings = REAL if is_real else [*SIMULATED, *["cluster.address=local"] * is_alone]
    done = cluster.submit(*options, "--", "python", script, *settings, f"output_dir={output}")
    assert done.returncode == 0, done.stdout
    assert ("starting Ray" in done.stdout) == is_alone
    results = json.loads((output / "results.json").read_text())
    assert (results["pictures"]["done"], results["failures"]) == (8, [])
    assert cluster.environment["RAY_AUTH_TOKEN"] not in (output / "results.json").read_text()
    if is_real:
        alone = warm_command(*settings, "output_dir=alone")
        assert alone.returncode == 0, alone.stderr
        assert outcome(output) == outcome(tmp_path / "alone") != {}


def test_auto_finds_the_cluster(cluster, tmp_path):
    done = subprocess.run(
        [cluster.python, PROJECT / "main.py", *SIMULATED, "cluster.address=auto", "output_dir=run"],
        cwd=tmp_path, env=cluster.environment | {"RAY_ADDRESS": cluster.address},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "starting Ray" not in done.stdout

"""`ray job submit` on a real cluster that asks for a token, and clusters that are refused."""

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
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
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
        (["--working-dir", str(PROJECT)], "main.py"),
        (["--working-dir", ".", "--runtime-env-json", '{"env_vars": {"A": "1"}}'], "main.py"),
        ([], str(PROJECT / "main.py")),
        (["--working-dir", ".", "--runtime-env", "deploy/runtime_env.yaml"], "main.py"),
    ],
    ids=["working-dir", "runtime-env-json", "neither", "requirements"],
)
def test_a_submitted_run_leaves_its_results_where_they_were_asked_for(
    cluster, tmp_path, command, options, script
):
    output = tmp_path / "there"
    is_real = not options
    settings = REAL if is_real else SIMULATED
    done = cluster.submit(*options, "--", "python", script, *settings, f"output_dir={output}")
    assert done.returncode == 0, done.stdout
    results = json.loads((output / "results.json").read_text())
    assert (results["pictures"]["done"], results["failures"]) == (8, [])
    assert cluster.environment["RAY_AUTH_TOKEN"] not in (output / "results.json").read_text()
    if is_real:
        alone = command(*settings, "cluster.address=local", "output_dir=alone")
        assert alone.returncode == 0, alone.stderr
        assert outcome(output) == outcome(tmp_path / "alone") != {}


def test_results_in_the_job_s_package_are_refused(cluster):
    done = cluster.submit("--working-dir", ".", "--", "python", "main.py", *SIMULATED)
    assert done.returncode != 0
    assert "cfdist: output_dir=/" in done.stdout
    assert "is in the folder of this job's package" in done.stdout
    assert "exit code 2" in done.stdout


def test_a_cluster_of_its_own_within_a_submitted_job(cluster, tmp_path):
    output = tmp_path / "there"
    settings = [*SIMULATED, "cluster.address=local", f"output_dir={output}"]
    done = cluster.submit("--working-dir", ".", "--", "python", "main.py", *settings)
    assert done.returncode == 0, done.stdout
    assert json.loads((output / "results.json").read_text())["pictures"]["done"] == 8


def test_auto_finds_the_cluster_and_local_leaves_it(cluster, tmp_path):
    for address in ("auto", "local"):
        done = subprocess.run(
            [cluster.python, PROJECT / "main.py", *SIMULATED, f"cluster.address={address}",
             f"output_dir={tmp_path / address}"],
            env=cluster.environment | {"RAY_ADDRESS": cluster.address},
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("starting Ray" in done.stdout) == (address == "local")


OTHER_VERSIONS = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
noted = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster"))
noted |= json.loads(sys.argv[2])
client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(noted).encode(), True, b"cluster")
"""


def test_a_cluster_of_another_ray_is_refused_with_one_line(cluster, tmp_path):
    import ray

    def note(version: str) -> None:
        arguments = [cluster.address, json.dumps({"ray_version": version})]
        subprocess.run(
            [cluster.python, "-c", OTHER_VERSIONS, *arguments], env=cluster.environment, check=True
        )

    note("2.9.0")
    try:
        done = subprocess.run(
            [cluster.python, PROJECT / "main.py", f"cluster.address={cluster.address}"],
            cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    finally:
        note(ray.__version__)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert "the cluster runs Ray 2.9.0" in lines[0]
    assert not (tmp_path / "outputs").exists()

"""Whole commands on a Ray cluster of two nodes, which are two raylets on this machine."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import environment_of_commands

pytestmark = pytest.mark.slow

# Starts the cluster, says where it is, and keeps it until its input ends.
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a cluster of two nodes with a core each listens."""
    with subprocess.Popen(
        [sys.executable, "-c", NODES],
        env=environment_of_commands(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        line = next(line for line in process.stdout if line.strip().rpartition(":")[2].isdigit())
        yield line.strip()
        process.stdin.close()
        process.wait(timeout=60)


def predictions(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "predictions").rglob("*.txt"), folder / "predictions.parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_doctor_asks_each_node_and_tells_the_runs_of_a_sweep_apart(
    warm_command, tmp_path, address
):
    done = warm_command(
        *("-m", "job=doctor", "backend=simulated", "backend.latency_ms=0", "dataset.limit=4"),
        *(f"cluster.address={address}", "devices=1,2"),
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    _, first, second = re.split("^run [01]: ", done.stdout, flags=re.MULTILINE)
    for count, said in enumerate((first, second), 1):
        assert f"devices={count}\n" in said
        assert re.search(f"^ok +Ray +joined: {count} device", said, re.MULTILINE)
        # This host, and each node of it.
        for what in ("cores", "memory", "/dev/shm", "loopback", "NPUs"):
            found = re.findall(rf"^(?:ok|note) +{what} +(.*)", said, re.MULTILINE)
            assert [one.startswith(f"{socket.gethostname()}: ") for one in found] == [
                *(False, True, True)
            ]
    assert not list(tmp_path.iterdir())


def test_letterboxing_on_two_nodes_changes_no_byte(warm_command, tmp_path, address):
    settings = ["dataset.limit=40", "model.height=256", "model.width=256", "backend=openvino"]
    runs = {
        "alone": [],
        "stage": ["preprocess.where=cluster"],
        "two": [f"cluster.address={address}", "devices=2"],
        "two_stage": [f"cluster.address={address}", "devices=2", "preprocess.where=cluster"],
    }
    for name, overrides in runs.items():
        result = warm_command(*settings, *overrides, f"output_dir={name}")
        assert result.returncode == 0, result.stderr
    contents = [predictions(tmp_path / name) for name in runs]
    assert len(contents[0]) == 41
    assert all(content == contents[0] for content in contents)
    origins = [json.loads((tmp_path / name / "results.json").read_text()) for name in runs]
    assert [one["letterboxed"] for one in origins] == ["device", "cluster"] * 2
    assert [one["pictures_decoded"] for one in origins] == [40] * 4

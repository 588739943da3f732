"""The command line `python -m ais_bench`: files of a folder in, one file for each output out."""

from __future__ import annotations

import argparse
import json
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ais_bench.infer.interface import InferSession


def main(argv: list[str]) -> int:
    """Parse, run on one chip or several, print the throughput."""
    args = _parser().parse_args(argv)
    devices = [int(device) for device in args.device.split(",")]
    files = sorted(str(path) for path in Path(args.input).iterdir()) if args.input else []
    folder = Path(args.output) / args.output_dirname if args.output else None
    if len(devices) == 1:
        _run_device(args, devices[0], files, folder)
        return 0
    # Each process writes into its own folder, as the real tool's do.
    shares = np.array_split(np.array(files, dtype=object), len(devices))
    with ProcessPoolExecutor(len(devices), mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                _run_device, args, device, list(share), folder and folder / f"device{device}_{i}"
            )
            for i, (device, share) in enumerate(zip(devices, shares, strict=True))
        ]
        print(f"[INFO] summary throughput:{sum(job.result() for job in jobs)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ais_bench")
    parser.add_argument("--model", required=True)
    parser.add_argument("--input")
    parser.add_argument("--output")
    parser.add_argument("--output_dirname", default="dumpout")
    parser.add_argument("--batchsize", type=int, default=1)
    parser.add_argument("--device", default="0")
    parser.add_argument("--loop", type=int, default=1)
    parser.add_argument("--warmup_count", type=int, default=1)
    return parser


def _run_device(
    args: argparse.Namespace, device: int, files: list[str], folder: Path | None
) -> float:
    """Run one chip's files; returns its throughput."""
    session = InferSession(device, args.model)
    needed = session.get_inputs()[0].realsize
    batches = _batches(files, needed) if files else [[]]
    for _ in range(args.warmup_count):
        session.infer([_content(batches[0], needed)])
    session.session.reset_sumaryinfo()
    session.set_loop_count(args.loop)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    for batch in batches:
        outputs = session.infer([_content(batch, needed)])
        if folder:
            _save(outputs, batch, folder)
    return _report(session.session.sumary().exec_time_list, args.batchsize, folder)


def _batches(files: list[str], needed: int) -> list[list[str | None]]:
    """Files in groups of a batch; `None` stands for filling up."""
    size = Path(files[0]).stat().st_size
    if size == 0 or needed % size:
        raise RuntimeError(f"arg0 tensorsize: {needed} filesize: {size} not match")
    count = needed // size
    groups = [files[i : i + count] for i in range(0, len(files), count)]
    return [group + [None] * (count - len(group)) for group in groups]


def _content(batch: list[str | None], needed: int) -> np.ndarray:
    if not batch:
        return np.zeros(needed, np.uint8)
    parts = [np.fromfile(name or batch[0], np.uint8) for name in batch]
    return np.concatenate(parts)


def _save(outputs: list[np.ndarray], batch: list[str | None], folder: Path) -> None:
    for k, output in enumerate(outputs):
        rows = np.array_split(output, max(1, len(batch)))
        for name, row in zip(batch or ["pure_infer_data"], rows, strict=True):
            if name is not None:
                row.tofile(folder / f"{Path(name).name.split('.')[0]}_{k}.bin")


def _report(entries: list, batchsize: int, folder: Path | None) -> float:
    times = [entry[1] - entry[0] if isinstance(entry, tuple) else entry for entry in entries]
    mean = math.fsum(times) / len(times)
    throughput = 1000 * batchsize / mean
    summary = {
        "NPU_compute_time": {
            "min": min(times),
            "max": max(times),
            "mean": mean,
            "median": float(np.median(times)),
            "percentile(99%)": float(np.percentile(times, 99)),
        },
        "throughput": throughput,
    }
    print(f"[INFO] NPU_compute_time (ms): {summary['NPU_compute_time']}")
    print(f"[INFO] throughput 1000*batchsize({batchsize})/NPU_compute_time.mean: {throughput}")
    if folder:
        (folder.parent / f"{folder.name}_summary.json").write_text(json.dumps(summary))
    return throughput

"""The command line `python -m ais_bench`: files of a folder in, one file for each output out."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import aclruntime
import numpy as np

from ais_bench.infer.interface import InferSession

IS_OLD = os.environ.get("AIS_BENCH_DOUBLE_GENERATION") == "0.0.2"


def main(argv: list[str]) -> int:
    """Parse, run on one chip or several, print the throughput; returns the exit status."""
    if module := os.environ.get("AIS_BENCH_DOUBLE_IMPORTS"):
        importlib.import_module(module)
    args = _parser().parse_args(argv)
    devices = [int(device) for device in args.device.split(",")]
    files = sorted(str(path) for path in Path(args.input).iterdir()) if args.input else []
    folder = Path(args.output) / args.output_dirname if args.output else None
    if len(devices) == 1:
        _run_device(args, devices[0], files, folder)
        return 0
    # Each process writes into its own folder, as the real tool's do.
    shares = [list(share) for share in np.array_split(np.array(files, dtype=object), len(devices))]
    if not (IS_OLD or args.divide_input):
        shares = [files] * len(devices)
    rates = []
    with ProcessPoolExecutor(len(devices), mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_run_share, args, device, share, folder and folder / f"device{device}_{i}")
            for i, (device, share) in enumerate(zip(devices, shares, strict=True))
        ]
        for device, job in zip(devices, jobs, strict=True):
            try:
                rates.append(job.result())
                print(f"[INFO] i:{len(rates)} device_{device} throughput:{rates[-1]}")
            except Exception as error:
                print(f"[ERROR] subprocess run failed error_callback:{error}")
    print(f"[INFO] summary throughput:{sum(rates)}")
    return int(len(rates) < len(devices))


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
    parser.add_argument("--outfmt", choices=["NPY", "BIN", "TXT"], default="BIN")
    parser.add_argument("--dymBatch", type=int, default=0)
    parser.add_argument("--debug", default="0")
    if not IS_OLD:
        parser.add_argument("--divide_input", type=int, default=0)
    return parser


def _run_share(
    args: argparse.Namespace, device: int, files: list[str], folder: Path | None
) -> float:
    """`_run_device` in a process of its own; its errors travel as text."""
    try:
        return _run_device(args, device, files, folder)
    except Exception as error:
        raise RuntimeError(str(error)) from None


def _run_device(
    args: argparse.Namespace, device: int, files: list[str], folder: Path | None
) -> float:
    """Run one chip's files; returns its throughput."""
    session = InferSession(device, args.model)
    if args.dymBatch:
        session.set_dynamic_batchsize(args.dymBatch)
    needed = session.get_inputs()[0].realsize
    batches = _batches(files, needed) if files else [[]]
    for _ in range(args.warmup_count):
        _infer(session, _content(batches[0], needed))
    session.session.reset_sumaryinfo()
    session.set_loop_count(args.loop)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    for batch in batches:
        outputs = _infer(session, _content(batch, needed))
        if folder:
            _save(outputs, batch, folder, args.outfmt)
    return _report(session.session.sumary().exec_time_list, args.batchsize, files, folder)


def _infer(session: InferSession, content: np.ndarray) -> list[np.ndarray]:
    """Run on bytes, in the mode that was set, as the command line does."""
    tensor = aclruntime.BaseTensor(content.__array_interface__["data"][0], content.nbytes)
    outputs = session.session.run(session.outputs_names, [tensor])
    return [np.array(output) for output in outputs]


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


def _save(outputs: list[np.ndarray], batch: list[str | None], folder: Path, outfmt: str) -> None:
    for k, output in enumerate(outputs):
        rows = np.array_split(output, max(1, len(batch)))
        for name, row in zip(batch or ["pure_infer_data"], rows, strict=True):
            if name is not None:
                path = folder / f"{Path(name).name.split('.')[0]}_{k}.{outfmt.lower()}"
                if outfmt == "NPY":
                    np.save(path, row)
                elif outfmt == "TXT":
                    np.savetxt(path, row.reshape(-1, row.shape[-1]))
                else:
                    row.tofile(path)


def _statistics(times: list[float]) -> dict[str, float]:
    """As the real tool's; zeros for no times."""
    if not times:
        return dict.fromkeys(("min", "max", "mean", "median", "percentile(99%)", "count"), 0)
    return {
        "min": min(times),
        "max": max(times),
        "mean": math.fsum(times) / len(times),
        "median": float(np.median(times)),
        "percentile(99%)": float(np.percentile(times, 99)),
        "count": len(times),
    }


def _report(entries: list, batchsize: int, files: list[str], folder: Path | None) -> float:
    times = [entry[1] - entry[0] if isinstance(entry, tuple) else entry for entry in entries]
    compute = _statistics(times)
    throughput = 1000 * batchsize / compute["mean"]
    stems = [Path(name).name.split(".")[0] for name in files]
    summary = {
        "filesinfo": {
            number: {
                "infiles": [name],
                "outfiles": [str((folder or Path()) / f"{stem}_{k}.bin") for k in range(4)],
            }
            for number, (name, stem) in enumerate(zip(files, stems, strict=True))
        },
        "args": sys.argv,
        "NPU_compute_time": compute,
        "H2D_latency": _statistics([]),
        "D2H_latency": _statistics([]),
        "npu_compute_time_list": times,
        "throughput": throughput,
        "pid": os.getpid(),
    }
    print(f"[INFO] NPU_compute_time (ms): {compute}")
    print(f"[INFO] throughput 1000*batchsize({batchsize})/NPU_compute_time.mean: {throughput}")
    if folder:
        (folder.parent / f"{folder.name}_summary.json").write_text(json.dumps(summary))
    return throughput

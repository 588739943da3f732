"""What a sweep of five batch sizes costs when the pictures are read once.

    python benchmarks/sweep_cache.py --root WIDER_val --ground-truth ground_truth

Runs `python main.py -m model.batch=1,4,8,16,32`, with letterboxed pictures kept between the runs
and without, and holds both against decoding the pictures once plus five times the devices' time. On
simulated devices that is what they need at their published speed if nothing ever waits;
`--backend openvino` (or another) takes it from `job=benchmark`'s pure inference, measured anew in
each round, of pictures that fill the whole input. Prints the time that the devices were inferring
in the sweep itself, the time from each run's first to its last picture, summed, the whole
command's, the JPEG files that each run decoded, and the ratios. `--passes 5` makes each run
as long as it would be on the full set of 3226 pictures, whose start and end weigh less.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from math import ceil
from pathlib import Path

from common import arguments_for, bare_pool, command, data_set, picture_paths

from cfdist.backends.simulated import batch_milliseconds

BATCHES = (1, 4, 8, 16, 32)


def simulated_seconds(pictures: int, devices: int) -> float:
    """What all runs' batches take, summed, on so many devices at their published speed."""
    options = {"preset": "310P3", "latency_ms": None}
    times = [ceil(pictures / b) * batch_milliseconds(b, options) / 1000 for b in BATCHES]
    return sum(times) / devices


def inference_seconds(pictures: int, settings: list[str]) -> float:
    """What all runs' inference takes, summed, at the rates of pure inference."""
    loops = ["job=benchmark", "benchmark.parts=[inference]", "benchmark.loops=5"]
    runs, _ = sweep([*loops, *settings])
    return sum(pictures / run["throughput"]["pure_inference"] for run in runs)


def sweep(overrides: list[str]) -> tuple[list[dict], float]:
    """Each run's results, and the command's time, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "sweep"
        start = time.perf_counter()
        batches = ",".join(map(str, BATCHES))
        command("-m", f"model.batch={batches}", f"output_dir={output}", *overrides)
        seconds = time.perf_counter() - start
        runs = [
            json.loads((output / str(i) / "results.json").read_text()) for i in range(len(BATCHES))
        ]
    return runs, seconds


def busy_seconds(run: dict) -> float:
    """How long a run's devices were inferring, their mean."""
    shares = [device["busy_share"] for device in run["devices"]]
    return run["seconds"]["run"] * statistics.mean(shares)


def main() -> None:
    """Measure the parts, then the sweep with and without."""
    parser = arguments_for(__doc__)
    parser.add_argument("--backend", default="simulated", help="simulated or a real one")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--passes", type=int, default=1, help="over the pictures, each run")
    parser.add_argument("--cache", nargs="+", default=["true", "false"], help="preprocess.cache")
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    paths = picture_paths(arguments.root)
    bare_pool(paths)
    devices = [f"backend={arguments.backend}", f"devices={arguments.devices}"]
    repeat = f"dataset.repeat={arguments.passes}"
    settings = [*data_set(arguments), *devices, repeat, *arguments.overrides]
    pictures = len(paths) * arguments.passes
    ratios: dict[str, list[tuple[float, float, float]]] = {cache: [] for cache in arguments.cache}
    for _ in range(arguments.rounds):
        decode, _ = bare_pool(paths)
        if arguments.backend == "simulated":
            device = simulated_seconds(pictures, arguments.devices)
        else:
            device = inference_seconds(pictures, devices)
        ideal = decode + device
        print(
            f"decoding {len(paths)} pictures once {decode:.1f} s, five times the devices' time for "
            f"{pictures} {device:.1f} s"
        )
        for cache in ratios:
            runs, seconds = sweep([*settings, f"preprocess.cache={cache}"])
            run_seconds = sum(run["seconds"]["run"] for run in runs)
            busy = sum(busy_seconds(run) for run in runs)
            ratios[cache].append((run_seconds / ideal, seconds / ideal, seconds / (decode + busy)))
            print(
                f"  preprocess.cache={cache:5} inferring {busy:.1f} s, runs {run_seconds:5.1f} s "
                f"({run_seconds / ideal:.3f}), command {seconds:5.1f} s ({seconds / ideal:.3f}), "
                f"decoded {[run['pictures_decoded'] for run in runs]}",
                flush=True,
            )
    for cache, rows in ratios.items():
        runs, whole, own = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"median, cache={cache}: runs {runs:.3f}, command {whole:.3f} of the ideal, "
            f"{own:.3f} of decoding and the devices' own time in the sweep"
        )


if __name__ == "__main__":
    main()

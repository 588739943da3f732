"""What a sweep of five batch sizes costs when the pictures are read once.

    python benchmarks/sweep_cache.py --root WIDER_val --ground-truth ground_truth

Runs `python main.py -m model.batch=1,4,8,16,32` on simulated devices, with letterboxed pictures
kept between the members and without, and holds both against decoding the pictures once plus five
times the devices' time: what the devices need at their published speed if nothing ever waits.
Prints the time from each member's first to its last picture, summed, the whole command's, the JPEG
files that each member decoded, and the ratios. `--passes 5` makes each member as long as it would
be on the full set of 3226 pictures, whose start and end weigh less.
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


def device_seconds(pictures: int, devices: int, options: dict) -> float:
    """What all members' batches take, summed, on so many devices."""
    times = [ceil(pictures / b) * batch_milliseconds(b, options) / 1000 for b in BATCHES]
    return sum(times) / devices


def run_sweep(overrides: list[str]) -> tuple[float, float, list[int]]:
    """The members' run times summed, the command's time, seconds; files decoded by each."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "sweep"
        start = time.perf_counter()
        batches = ",".join(map(str, BATCHES))
        command("-m", f"model.batch={batches}", f"output_dir={output}", *overrides)
        seconds = time.perf_counter() - start
        members = [
            json.loads((output / str(i) / "results.json").read_text()) for i in range(len(BATCHES))
        ]
    runs = sum(member["seconds"]["run"] for member in members)
    return runs, seconds, [member["pictures_decoded"] for member in members]


def main() -> None:
    """Measure the parts, then the sweep with and without."""
    parser = arguments_for(__doc__)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--passes", type=int, default=1, help="over the pictures, each member")
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    paths = picture_paths(arguments.root)
    bare_pool(paths)
    options = {"preset": "310P3", "latency_ms": None}
    settings = [
        *data_set(arguments),
        "backend=simulated",
        f"devices={arguments.devices}",
        f"dataset.repeat={arguments.passes}",
        *arguments.overrides,
    ]
    pictures = len(paths) * arguments.passes
    device = device_seconds(pictures, arguments.devices, options)
    ratios = {"true": [], "false": []}
    for _ in range(arguments.rounds):
        decode, _ = bare_pool(paths)
        ideal = decode + device
        print(
            f"decoding {len(paths)} pictures once {decode:.1f} s, five times the devices' time for "
            f"{pictures} {device:.1f} s"
        )
        for cache in ratios:
            runs, seconds, decoded = run_sweep([*settings, f"preprocess.cache={cache}"])
            ratios[cache].append((runs / ideal, seconds / ideal))
            print(
                f"  preprocess.cache={cache:5} runs {runs:5.1f} s ({runs / ideal:.3f}), command "
                f"{seconds:5.1f} s ({seconds / ideal:.3f}), decoded {decoded}",
                flush=True,
            )
    for cache, pairs in ratios.items():
        runs, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"median, cache={cache}: runs {runs:.3f}, command {whole:.3f} of the ideal")


if __name__ == "__main__":
    main()

"""The network in windows against the network in one piece, on the CPU by OpenVINO.

    python benchmarks/windows.py --root WIDER_val --ground-truth ground_truth

Infers letterboxed pictures that are in memory, and does nothing else, with one stream a core:
  whole    each batch at once, through the network as it is in the file;
  windows  as `backend=openvino` does it: the first layers window by window where the picture is,
           and a batch picture by picture.
Alternates between them for each batch size, and prints the pictures a second of each, their ratio,
and the largest difference in any head map.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median

import numpy as np
from common import arguments_for, picture_paths, plain_warp

from cfdist.backends.base import DeviceSettings
from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.openvino import OpenVINOBackend, WholeNetworkSlot
from cfdist.backends.openvino_graph import compile_network
from cfdist.config import compose
from cfdist.inputs import model_spec
from cfdist.machine import available_cores
from cfdist.model import ModelSpec

BATCHES = (1, 4, 16)

Infer = Callable[[np.ndarray], Sequence[np.ndarray]]


def whole_network(spec: ModelSpec) -> Infer:
    """Infers a batch at once, as many batches at a time as there are cores."""
    cores = available_cores()
    network = compile_network(load_onnx(spec), spec, spec.batch, cores, cores, "f32")
    free: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(cores):
        free.put(WholeNetworkSlot(network))

    def infer(batch: np.ndarray) -> list[np.ndarray]:
        slot = free.get()
        outputs = [np.array(output) for output in slot.infer(batch)]
        free.put(slot)
        return outputs

    return infer


def in_windows(spec: ModelSpec) -> Infer:
    """Infers as the product does."""
    cores = available_cores()
    backend = OpenVINOBackend(spec, DeviceSettings(cores, cores, 0, {"precision": "f32"}))

    def infer(batch: np.ndarray) -> list[np.ndarray]:
        heads = backend.infer(batch)
        return [heads.hm, heads.wh, heads.offset, heads.landmarks]

    return infer


def rate(infer: Infer, batches: Sequence[np.ndarray]) -> float:
    """Pictures a second, one thread a core handing over batches."""
    start = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(lambda batch: len(infer(batch)), batches):
            pass
    return sum(map(len, batches)) / (time.perf_counter() - start)


def main() -> None:
    """Alternate, and print medians."""
    parser = arguments_for(__doc__)
    parser.add_argument("--pictures", type=int, default=96, help="spread over the data set")
    arguments = parser.parse_args()
    paths = picture_paths(arguments.root)
    chosen = paths[:: max(1, len(paths) // arguments.pictures)][: arguments.pictures]
    pictures = np.stack([plain_warp(path) for path in chosen])
    black = 1 - pictures.any(axis=(2, 3)).mean()
    print(f"{len(pictures)} pictures, {black:.0%} of their rows black, {available_cores()} cores")
    spec = model_spec(compose("model.batch=1").model)
    for size in BATCHES:
        batches = [pictures[i : i + size] for i in range(0, len(pictures), size)]
        whole, windows = (make(replace(spec, batch=size)) for make in (whole_network, in_windows))
        apart = max(
            float(np.abs(a - b).max())
            for batch in batches
            for a, b in zip(whole(batch), windows(batch), strict=True)
        )
        rates = [(rate(whole, batches), rate(windows, batches)) for _ in range(arguments.rounds)]
        ratios = [after / before for before, after in rates]
        print(
            f"batch {size:2}: whole {median(r[0] for r in rates):.1f}, in windows "
            f"{median(r[1] for r in rates):.1f} pictures/s: {median(ratios):.3f} "
            f"({min(ratios):.3f} - {max(ratios):.3f}); head maps differ by {apart:.2g}"
        )


if __name__ == "__main__":
    main()

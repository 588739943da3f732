"""The product on a CPU against plain loops that one would write in an afternoon.

    python benchmarks/plain_loops.py --root WIDER_val --ground-truth ground_truth

Alternates, in one run, between
  onnxruntime  a single process, picture by picture: cv2.imread, cv2.warpAffine, ONNX Runtime with
               its default settings, peaks, boxes, suppression;
  openvino     the same steps around OpenVINO's asynchronous queue with its best settings: as many
               streams as was fastest here, one thread each, u8 input; the next picture is read
               while the streams infer;
  inference    OpenVINO's queue alone, pictures letterboxed and in memory, nothing else done;
  product      `python main.py backend=...`, once with each of the two runtimes: all of these steps,
               journal, prediction files and AP, through Ray;
and prints the pictures a second of each (the product's: steady) and the product's ratios to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from common import arguments_for, data_set, picture_paths, plain_warp, product

from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.openvino import compile_network
from cfdist.config import compose
from cfdist.decode import HeadMaps, decode_boxes, nms, select_peaks
from cfdist.inputs import model_spec
from cfdist.machine import available_cores
from cfdist.model import ModelSpec
from cfdist.preprocess import to_model_input

IN_MEMORY = 8  # pictures of the inference-only loop
TRIAL = 24  # pictures for finding the best settings, each round
BACKENDS = ("openvino", "onnxruntime")
LOOPS = ("onnxruntime", "openvino", "inference")


def decode(outputs: Sequence[np.ndarray], spec: ModelSpec) -> int:
    """From one picture's head maps to boxes; returns how many."""
    peaks = select_peaks(HeadMaps(*outputs), spec.top_k)
    size = np.array([[spec.width, spec.height]])
    boxes = decode_boxes(peaks, spec.convention, size, (spec.width, spec.height)).boxes[0]
    return int(nms(boxes, peaks.score[0], spec.nms).sum())


def onnxruntime_loop(paths: list[str], spec: ModelSpec) -> float:
    """Pictures a second of the plain ONNX Runtime script."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # its warnings about the exporter
    session = onnxruntime.InferenceSession(load_onnx(spec).model.SerializeToString())
    name = session.get_inputs()[0].name
    names = list(spec.outputs)

    def one(path: str) -> None:
        inputs = to_model_input(plain_warp(path)[None], spec.float_contract())
        decode(session.run(names, {name: inputs}), spec)

    one(paths[0])
    start = time.perf_counter()
    for path in paths:
        one(path)
    return len(paths) / (time.perf_counter() - start)


def openvino_loop(paths: list[str], spec: ModelSpec, streams: int) -> float:
    """Pictures a second of the plain OpenVINO script."""
    return _through_queue(spec, streams, paths, plain_warp, lambda outputs: decode(outputs, spec))


def inference_loop(pictures: list[np.ndarray], count: int, spec: ModelSpec, streams: int) -> float:
    """Pictures a second of OpenVINO alone, pictures in memory over and over."""
    items = [pictures[i % len(pictures)] for i in range(count)]
    return _through_queue(spec, streams, items, lambda picture: picture, lambda outputs: None)


def _through_queue(
    spec: ModelSpec, streams: int, items: Sequence, read: Callable, take: Callable
) -> float:
    import openvino as ov

    compiled = compile_network(spec, available_cores(), streams, "f32")
    queue = ov.AsyncInferQueue(compiled, streams)
    queue.set_callback(lambda request, _: take([t.data for t in request.output_tensors]))

    def run(some: Sequence) -> None:
        for item in some:
            queue.start_async([ov.Tensor(np.ascontiguousarray(read(item)[None]))])
        queue.wait_all()

    run(items[: 2 * streams])  # memory is touched for the first time here
    start = time.perf_counter()
    run(items)
    return len(items) / (time.perf_counter() - start)


def best_streams(paths: list[str], spec: ModelSpec, rounds: int) -> int:
    """OpenVINO's streams that were fastest in any of some alternating trials; printed."""
    best: dict[int, float] = {}
    for _ in range(rounds):
        for streams in range(1, available_cores() + 1):
            rate = openvino_loop(paths[:TRIAL], spec, streams)
            best[streams] = max(best.get(streams, 0.0), rate)
    found = ", ".join(f"{streams}: {rate:.1f}" for streams, rate in best.items())
    print(f"{available_cores()} threads; OpenVINO's pictures/s by streams: {found}")
    return max(best, key=best.__getitem__)


def main() -> None:
    """Find the best settings, alternate, and print medians."""
    parser = arguments_for(__doc__)
    parser.add_argument("--pictures", type=int, default=200, help="for each OpenVINO loop")
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    cv2.setNumThreads(available_cores())
    paths = picture_paths(arguments.root)[: arguments.pictures]
    spec = model_spec(compose("model.batch=1").model)
    streams = best_streams(paths, spec, arguments.rounds)
    overrides = [*data_set(arguments), f"dataset.limit={arguments.pictures}", *arguments.overrides]

    print("onnxruntime  openvino  inference |", *(f"product {name}" for name in BACKENDS), sep="  ")
    in_memory = [plain_warp(path) for path in paths[:IN_MEMORY]]
    rows = []
    for _ in range(arguments.rounds):
        plain = (
            onnxruntime_loop(paths[: arguments.pictures // 2], spec),
            openvino_loop(paths, spec, streams),
            inference_loop(in_memory, len(paths), spec, streams),
        )
        steady = [
            product([*overrides, f"backend={name}"])[0]["throughput"]["steady"] for name in BACKENDS
        ]
        rows.append([[rate / loop for loop in plain] for rate in steady])
        print("{:11.2f}  {:8.2f}  {:9.2f}".format(*plain), end=" |")
        print(*(f"{rate:{10 + len(name)}.2f}" for rate, name in zip(steady, BACKENDS, strict=True)))
    medians = np.median(rows, axis=0)
    for name, ratios in zip(BACKENDS, medians, strict=True):
        of = ", ".join(f"{ratio:.3f} of {loop}" for ratio, loop in zip(ratios, LOOPS, strict=True))
        print(f"median: product with {name}: {of}")


if __name__ == "__main__":
    main()

"""The product on a CPU against plain loops that one would write in an afternoon.

    python benchmarks/plain_loops.py --root WIDER_val --ground-truth ground_truth

Alternates, in one run, between
  script       a single process, picture by picture: cv2.imread, cv2.warpAffine, ONNX Runtime with
               its default settings on the authors' file as it is (but for the declared input
               shape, a label that ONNX Runtime would hold pictures to), peaks, boxes, suppression;
  constant     the same with the file's weights made constant, which ONNX Runtime needs to fold the
               batch norms into the convolutions;
  openvino-N   the same steps around OpenVINO's asynchronous queue with u8 input, N streams of one
               share of the threads each; the next picture is read while the streams infer;
  inference-N  OpenVINO's queue alone, pictures letterboxed and in memory, nothing else done;
  product      `python main.py backend=...`: all of these steps, journal, prediction files and AP,
               through Ray, for each of the product's ways to use a CPU;
and prints the pictures a second of each (the product's: steady) and the product's ratios to them.
Of OpenVINO's streams, 1, 2, 4, ..., the number with the best median counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import cv2
import numpy as np
import onnx
from common import arguments_for, data_set, picture_paths, plain_warp, product

from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.openvino import compile_model, picture_model
from cfdist.config import compose
from cfdist.decode import HeadMaps, decode_boxes, nms, select_peaks
from cfdist.execution import model_spec
from cfdist.machine import available_cores
from cfdist.model import ModelSpec
from cfdist.preprocess import to_model_input

IN_MEMORY = 8  # pictures of the inference-only loop
WAYS = {
    "openvino f32": ["backend=openvino"],
    "onnxruntime": ["backend=onnxruntime"],
    "openvino bf16": ["backend=openvino", "backend.precision=bf16"],
}


def decode(outputs: Sequence[np.ndarray], spec: ModelSpec) -> int:
    """From one picture's head maps to boxes; returns how many."""
    peaks = select_peaks(HeadMaps(*outputs), spec.top_k)
    size = np.array([[spec.width, spec.height]])
    boxes, _ = decode_boxes(peaks, spec.convention, size, (spec.width, spec.height))
    return int(nms(boxes[0], peaks.score[0], spec.nms).sum())


def with_free_shapes(path: str) -> bytes:
    """The ONNX file with nothing changed but the declared sizes of its input and outputs."""
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    pictures = [value for value in model.graph.input if value.name not in weights]
    for value in [*pictures, *model.graph.output]:
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    return model.SerializeToString()


def onnxruntime_loop(network: bytes, paths: list[str], spec: ModelSpec) -> float:
    """Pictures a second of the plain ONNX Runtime script."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # its warnings about the exporter
    session = onnxruntime.InferenceSession(network)
    name = session.get_inputs()[0].name

    def one(path: str) -> None:
        inputs = to_model_input(plain_warp(path)[None], spec.float_contract())
        decode(session.run(list(spec.outputs), {name: inputs}), spec)

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

    model = picture_model(load_onnx(spec), spec, 1)
    compiled = compile_model(model, available_cores(), streams, "f32")
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


def stream_counts() -> list[int]:
    """1, 2, 4, ... and as many as there are cores."""
    cores = available_cores()
    return sorted({1 << bit for bit in range(cores.bit_length()) if 1 << bit <= cores} | {cores})


def loops(paths: list[str], spec: ModelSpec) -> dict[str, Callable[[], float]]:
    """What each plain loop is called, and what runs it."""
    some = paths[: max(1, len(paths) // 2)]  # the slow ones
    in_memory = [plain_warp(path) for path in paths[:IN_MEMORY]]
    networks = {
        "script": with_free_shapes(str(spec.path)),
        "constant": load_onnx(spec).SerializeToString(),
    }
    found: dict[str, Callable[[], float]] = {}
    for name, network in networks.items():
        found[name] = lambda network=network: onnxruntime_loop(network, some, spec)
    for streams in stream_counts():
        found[f"openvino-{streams}"] = lambda n=streams: openvino_loop(paths, spec, n)
        found[f"inference-{streams}"] = lambda n=streams: inference_loop(
            in_memory, len(paths), spec, n
        )
    return found


def best_of(kind: str, rates: dict[str, list[float]]) -> str:
    """The name with the best median of those that are `kind`, or `kind` and a number."""
    names = [name for name in rates if name.partition("-")[0] == kind]
    return max(names, key=lambda name: median(rates[name]))


def main() -> None:
    """Alternate, and print medians."""
    parser = arguments_for(__doc__)
    parser.add_argument("--pictures", type=int, default=200, help="for each OpenVINO loop")
    parser.add_argument("overrides", nargs="*", help="further settings for the product")
    arguments = parser.parse_args()
    cv2.setNumThreads(available_cores())
    paths = picture_paths(arguments.root)[: arguments.pictures]
    spec = model_spec(compose("model.batch=1").model)
    plain = loops(paths, spec)
    overrides = [*data_set(arguments), f"dataset.limit={arguments.pictures}", *arguments.overrides]

    print(f"{len(paths)} pictures, {available_cores()} cores; pictures/s, round by round")
    rates: dict[str, list[float]] = {name: [] for name in (*plain, *WAYS)}
    for _ in range(arguments.rounds):
        for name, loop in plain.items():
            rates[name].append(loop())
        for name, way in WAYS.items():
            rates[name].append(product([*overrides, *way])[0]["throughput"]["steady"])
        print("  ".join(f"{name} {each[-1]:.2f}" for name, each in rates.items()), flush=True)

    kinds = list(dict.fromkeys(name.partition("-")[0] for name in plain))
    best = [best_of(kind, rates) for kind in kinds]
    print("\nmedians, and the product's ratios to the plain loops (median of the rounds' ratios)")
    for name in best:
        print(f"{name:22} {median(rates[name]):6.2f}")
    for way in WAYS:
        ratios = [
            f"{median(a / b for a, b in zip(rates[way], rates[name], strict=True)):.3f} of {name}"
            for name in best
        ]
        print(f"{'product ' + way:22} {median(rates[way]):6.2f}   {', '.join(ratios)}")


if __name__ == "__main__":
    main()

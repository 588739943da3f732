"""Ways to run a batch through OpenVINO on the CPU: at once, picture by picture, and in tiles.

    python benchmarks/tiles.py --root WIDER_val --ground-truth ground_truth --rounds 5

Infers letterboxed pictures that are in memory, and does nothing else, with one stream a core:
  at once   each batch at once, through the network as it is in the file;
  product   as `backend=openvino` does it: one picture after the other;
  tiles-N   one picture after the other, and its stem, the first layers down to an eighth of the
            input's resolution, N rows (or columns) at a time and only where the picture is.
Alternates between them for each batch size, and prints the pictures a second of each, their ratio
to the product, and the largest difference in any head map. The product does not use tiles: the
script is here to find a processor on which they would pay.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median

import cv2
import numpy as np
import onnx
import openvino as ov
from common import arguments_for, picture_paths, plain_warp
from numpy.typing import NDArray
from onnx.utils import Extractor
from openvino.preprocess import PrePostProcessor

from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.openvino import compile_model, picture_model, run
from cfdist.config import compose
from cfdist.execution import model_spec
from cfdist.machine import available_cores
from cfdist.model import ModelSpec

BATCHES = (1, 4, 16)
TILES = (80, 272)

# Where the authors' network is cut: the tensors that the stem hands over, and their strides. Their
# cells look at 13 pixels each way, which is 16 where tiles are aligned to the stride.
CUT = {"394": 8, "387": 4}
STRIDE, HALO = 8, 16

Outputs = list[NDArray[np.float32]]
Infer = Callable[[NDArray[np.uint8]], Outputs]


def channels_last(model: ov.Model, ports: str) -> ov.Model:
    """The model with its `inputs` or `outputs` NHWC instead of NCHW."""
    processor = PrePostProcessor(model)
    for i in range(len(getattr(model, ports))):
        port = getattr(processor, ports.removesuffix("s"))(i)
        port.model().set_layout(ov.Layout("NCHW"))
        port.tensor().set_layout(ov.Layout("NHWC"))
    return processor.build()


def compiled(model: ov.Model) -> ov.CompiledModel:
    """One stream a core."""
    return compile_model(model, available_cores(), available_cores(), "f32")


class TiledNetwork:
    """The stem for a tile of whole rows and one of whole columns, and the rest of the network.

    A tile at the picture's edge has that edge where the network's own padding belongs; elsewhere
    what its padding has spoilt, the halo, is dropped. So one shape serves for all places.
    """

    def __init__(self, spec: ModelSpec, kept: int) -> None:
        self.kept, self.size, self.side = kept, kept + 2 * HALO, spec.height
        model = load_onnx(spec)
        extractor = Extractor(onnx.shape_inference.infer_shapes(model))
        outputs = [value.name for value in model.graph.output]
        stem = extractor.extract_model([model.graph.input[0].name], list(CUT))
        rest = ov.Core().read_model(extractor.extract_model(list(CUT), outputs).SerializeToString())
        rest.reshape(
            {
                taken.any_name: [1, *(dim.get_length() for dim in taken.partial_shape[1:])]
                for taken in rest.inputs
            }
        )
        self.rest = compiled(channels_last(rest, "inputs"))

        def compiled_stem(height: int, width: int) -> ov.CompiledModel:
            shape = replace(spec, height=height, width=width)
            tile = picture_model(stem, shape, 1)
            return compiled(channels_last(tile, "outputs"))

        self.stems = (compiled_stem(self.size, self.side), compiled_stem(self.side, self.size))
        black = np.zeros((1, self.side, self.side, 3), np.uint8)
        whole = compiled_stem(self.side, self.side).create_infer_request()
        self.black = [tensor.copy() for tensor in run(whole, [black])]


def tiled(network: TiledNetwork) -> Infer:
    """One stream: infers a (1, H, W, 3) picture."""
    cut = [tensor.copy() for tensor in network.black]
    requests = [stem.create_infer_request() for stem in network.stems]
    rest = network.rest.create_infer_request()

    def infer(batch: NDArray[np.uint8]) -> Outputs:
        height, width, channels = batch.shape[1:]
        x, y, w, h = cv2.boundingRect(batch.reshape(height, width * channels))
        axis = 0 if h / height <= w / channels / width else 1
        begin, end = ((y, y + h), (x // channels, -(-(x + w) // channels)))[axis]
        first = max(0, (begin - HALO) // STRIDE * STRIDE)
        last = min(network.side, -(-(end + HALO) // STRIDE) * STRIDE)
        # Views with the tiles' axis in front.
        picture = batch[0].swapaxes(0, axis)
        places = [tensor[0].swapaxes(0, axis) for tensor in cut]
        for place, tensor, stride in zip(places, network.black, CUT.values(), strict=True):
            black = tensor[0].swapaxes(0, axis)
            place[: first // stride] = black[: first // stride]
            place[last // stride :] = black[last // stride :]
        for start in range(first, last, network.kept):
            top = min(max(start - HALO, 0), network.side - network.size)
            stop = min(start + network.kept, last)
            piece = picture[top : top + network.size].swapaxes(0, axis)
            made = run(requests[axis], [np.ascontiguousarray(piece)[None]])
            for place, tensor, stride in zip(places, made, CUT.values(), strict=True):
                kept = slice((start - top) // stride, (stop - top) // stride)
                place[start // stride : stop // stride] = tensor[0].swapaxes(0, axis)[kept]
        return run(rest, cut)

    return infer


def whole(network: ov.CompiledModel) -> Infer:
    """One stream: infers pictures with the network in one piece."""
    request = network.create_infer_request()
    return lambda batch: run(request, [batch])


def streams(make: Callable[[], Infer], at_once: int) -> Infer:
    """A stream a core, each of which takes some pictures of a batch at once."""
    idle: queue.SimpleQueue[Infer] = queue.SimpleQueue()
    for _ in range(available_cores()):
        idle.put(make())

    def infer(batch: NDArray[np.uint8]) -> Outputs:
        stream = idle.get()
        # The stream's next inference overwrites what it gave.
        parts = [
            [np.array(output) for output in stream(batch[i : i + at_once])]
            for i in range(0, len(batch), at_once)
        ]
        idle.put(stream)
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return infer


def rate(infer: Infer, batches: Sequence[NDArray[np.uint8]]) -> float:
    """Pictures a second, one thread a core handing over batches."""
    start = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(lambda batch: len(infer(batch)), batches):
            pass
    return sum(map(len, batches)) / (time.perf_counter() - start)


def compare(ways: dict[str, Infer], pictures: NDArray[np.uint8], size: int, rounds: int) -> None:
    """Alternate between the ways to run batches of one size, and print medians."""
    batches = [pictures[i : i + size] for i in range(0, len(pictures), size)]
    apart = dict.fromkeys(ways, 0.0)  # this run also warms the streams up
    for batch in batches:
        expected = ways["product"](batch)
        for name, infer in ways.items():
            for a, b in zip(infer(batch), expected, strict=True):
                apart[name] = max(apart[name], float(np.abs(a - b).max()))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, infer in ways.items():
            rates[name].append(rate(infer, batches))
    for name, each in rates.items():
        ratios = [a / b for a, b in zip(each, rates["product"], strict=True)]
        print(
            f"batch {size:2} {name:9} {median(each):6.1f} pictures/s, {median(ratios):.3f} "
            f"({min(ratios):.3f} - {max(ratios):.3f}); head maps differ by {apart[name]:.2g}",
            flush=True,
        )


def main() -> None:
    """Compare the ways for each batch size."""
    parser = arguments_for(__doc__)
    parser.add_argument("--pictures", type=int, default=96, help="spread over the data set")
    arguments = parser.parse_args()
    paths = picture_paths(arguments.root)
    chosen = paths[:: max(1, len(paths) // arguments.pictures)][: arguments.pictures]
    pictures = np.stack([plain_warp(path) for path in chosen])
    black = 1 - pictures.any(axis=(2, 3)).mean()
    print(f"{len(pictures)} pictures, {black:.0%} of their rows black, {available_cores()} cores")
    spec = model_spec(compose("model.batch=1").model)
    network = load_onnx(spec)
    one = compiled(picture_model(network, spec, 1))
    in_tiles = {f"tiles-{kept}": TiledNetwork(spec, kept) for kept in TILES}
    for size in BATCHES:
        whole_batch = compiled(picture_model(network, spec, size))
        ways = {
            "at once": streams(lambda network=whole_batch: whole(network), size),
            "product": streams(lambda: whole(one), 1),
        }
        for name, tiles in in_tiles.items():
            ways[name] = streams(lambda tiles=tiles: tiled(tiles), 1)
        compare(ways, pictures, size, arguments.rounds)


if __name__ == "__main__":
    main()

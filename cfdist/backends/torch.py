"""PyTorch on the CPU or a CUDA device: the checkpoint itself, without an export between."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.backends.cuda import CudaLane
from cfdist.backends.onnx_file import load_onnx
from cfdist.decode import PEAK_VALUES, HeadMaps, Peaks
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.model.formats import ONNX, format_of, refuse_other_format
from cfdist.network.centerface import CenterFace, Normalize, fold_batch_norms
from cfdist.network.checkpoint import load_network
from cfdist.network.from_onnx import load_onnx_network
from cfdist.preprocess import InputContract

PRECISIONS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class TorchBackend(Backend):
    """A checkpoint (`.pth`), or the original authors' ONNX, run by PyTorch.

    On CUDA it also picks the peaks, so that a picture's cells come back and not its maps.

    Options: `device`, "cpu", "cuda" or "auto" (CUDA where there is one); `precision`, a key of
    `PRECISIONS`: all but the heads computes in it.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        numeric_options=("device", "precision"), streams_need_threads=True, takes_any_size=True
    )

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        self.contract = InputContract(spec.height, spec.width, None)
        self._device = choose_device(settings.options["device"], settings.index)
        precision = settings.options["precision"]
        _refuse_slow_precision(precision, self._device)
        self.runs_on = device_text(self._device, precision)
        self.streams = max(1, min(settings.streams, settings.threads))
        torch.set_num_threads(settings.threads // self.streams)
        _compute_in_full_precision()
        # Folded and channels last: measured on a CPU 5 to 8 times the plain network's speed.
        network = fold_batch_norms(load_spec_network(spec)).to(self._device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        normalize = Normalize(spec.float_contract()).to(self._device)
        is_cuda = self._device.type == "cuda"
        picks = is_cuda and not settings.needs_heads and spec.peaks == "maxima"
        peaks = (spec.top_k, spec.score) if picks and spec.top_k is not None else None
        self._compute = _Compute(normalize, network, PRECISIONS[precision], peaks)
        self._lanes: queue.SimpleQueue[CudaLane] = queue.SimpleQueue()
        fixed = self.contract.shape(spec.batch) if spec.size == "letterbox" else None
        for _ in range(self.streams if is_cuda else 0):
            self._lanes.put(CudaLane(self._compute, self._device, fixed))

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`; each device looks itself whether its hardware is there."""
        if cls.device_kind(options) == "cpu":
            _refuse_slow_precision(options["precision"], torch.device("cpu"))
        load_spec_network(spec)

    @classmethod
    def numeric_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Backend.numeric_options`; in float32 as before there was a precision."""
        its = super().numeric_options(options)
        return its if its["precision"] != "f32" else {"device": its["device"]}

    @classmethod
    def device_kind(cls, options: Mapping[str, Any]) -> str:
        """See `Backend.device_kind`; "auto" goes by what this process sees."""
        name = options["device"]
        has_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return "gpu" if has_cuda else "cpu"

    def infer(self, inputs: NDArray[np.generic]) -> HeadMaps | Peaks:
        """See `Backend.infer`; inputs are (n, H, W, 3) u8, BGR."""
        if self._device.type == "cpu":
            with torch.inference_mode():
                return HeadMaps(*(one.numpy() for one in self._compute(torch.from_numpy(inputs))))
        lane = self._lanes.get()
        try:
            outputs: list[NDArray[Any]] = lane.infer(inputs)
        finally:
            self._lanes.put(lane)
        return Peaks(*outputs) if self._compute.peaks else HeadMaps(*outputs)

    def close(self) -> None:
        """Give the device's memory back."""
        del self._compute, self._lanes
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


class _Compute:
    """From pictures, (n, H, W, 3) u8, to head maps or, with `peaks`, to the arrays of `Peaks`.

    The backbone and the neck compute in a precision, the heads always in float32: a half's scores
    have so few values that many peaks would be equal.

    Attributes:
        peaks: The number of peaks and the score that they are above; `None`: head maps.
    """

    def __init__(
        self,
        normalize: Normalize,
        network: CenterFace,
        precision: torch.dtype,
        peaks: tuple[int, float] | None,
    ) -> None:
        self._normalize = normalize
        self._network = network
        self._precision = precision
        network.base.to(precision)
        network.dla_up.to(precision)
        self.peaks = peaks

    def __call__(self, pictures: torch.Tensor) -> Sequence[torch.Tensor]:
        x = self._normalize(pictures).to(self._precision)
        heads = self._network.heads(self._network.dla_up(self._network.base(x)).float())
        if self.peaks:
            return pick_peaks(heads, *self.peaks)
        return [head.contiguous() for head in heads]


def pick_peaks(
    heads: Sequence[torch.Tensor], k: int, above: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`cfdist.decode.select_peaks`, bit for bit, on the device of the head maps of n pictures.

    Returns:
        Score (n, K), cell (n, K) int32 and values (n, K, 14) as `Peaks` has them, K the smaller of
        k and the number of cells. All scores of a picture whose maps are not finite are NaN, for
        `cfdist.decode.finite_pictures` to find.
    """
    hm, *others = heads
    is_peak = (hm > float(np.float32(above))) & (hm == nn.functional.max_pool2d(hm, 3, 1, 1))
    # A stable sort: equal scores come in the order of their cells.
    order = torch.where(is_peak, hm, 0).flatten(1).sort(dim=1, descending=True, stable=True)
    score, cell = order.values[:, :k], order.indices[:, :k]
    values = torch.cat(others, dim=1).flatten(2)
    values = values.gather(2, cell[:, None].expand(-1, PEAK_VALUES, -1)).transpose(1, 2)
    there = score > 0
    finite = torch.stack([one.flatten(1).isfinite().all(1) for one in heads]).all(0)
    return (
        torch.where(finite[:, None], score, torch.nan),
        torch.where(there, cell, 0).int(),
        torch.where(there[..., None], values, 0).contiguous(),
    )


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


def _refuse_slow_precision(precision: str, device: torch.device) -> None:
    if precision == "f16" and device.type == "cpu":  # measured: 14 times as slow as float32
        raise UserError(
            "backend.precision=f16: PyTorch computes it on a CPU many times slower than float32; "
            "choose f32 or bf16, or backend.device=cuda"
        )


def device_text(device: torch.device, precision: str = "f32") -> str:
    """A PyTorch device as results name it: "cpu", "cuda:0 (NVIDIA H100), f16"."""
    name = "cpu" if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"
    return name if precision == "f32" else f"{name}, {precision}"


def _compute_in_full_precision() -> None:
    """The model's own numbers, the same in every run: no TF32, no kernel chosen by timing."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

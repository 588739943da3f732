"""OpenVINO on the CPU: u8 pictures in, normalisation inside the graph."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from cfdist.backends.base import Backend, DeviceSettings
from cfdist.backends.onnx_file import as_result, load_onnx
from cfdist.backends.openvino_graph import compile_network, run
from cfdist.backends.openvino_windows import WindowsSlot, split_network
from cfdist.decode import HeadMaps, Peaks
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract


class OpenVINOBackend(Backend):
    """An ONNX compiled by OpenVINO for the CPU.

    Each slot is a stream, and the streams share the device's threads: on a few cores one thread a
    stream gives 5 to 15 % more pictures a second than one stream of all threads. The first layers
    run window by window, where the picture is, see `cfdist.backends.openvino_windows`.

    Options: `precision`, "f32", or "bf16" where the processor has it: faster, but no longer the
    model's numbers.
    """

    # OpenVINO 2026.4: 0.57 and 1.15 GB for 4 and 8 pictures of 800x800 in one piece; half of that
    # in windows.
    activation_bytes_per_pixel = 215
    skips_black = True

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        self.contract = InputContract(spec.height, spec.width, None)
        self.streams = max(1, min(settings.streams, settings.threads))
        self._at_once = self.pictures_at_once(spec.batch, settings.threads // self.streams)
        how = (self._at_once, settings.threads, self.streams, settings.options["precision"])
        network = load_onnx(spec)
        in_windows = split_network(network, spec, *how)
        whole = None if in_windows else compile_network(network, spec, *how)
        self._free: queue.SimpleQueue[WindowsSlot | WholeNetworkSlot] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._free.put(WindowsSlot(in_windows) if in_windows else WholeNetworkSlot(whole))

    @classmethod
    def check(cls, spec: ModelSpec, options: dict[str, Any]) -> None:
        """See `Backend.check`."""
        load_onnx(spec)

    @classmethod
    def pictures_at_once(cls, batch: int, threads: int) -> int:
        """See `Backend.pictures_at_once`: as many as there are threads.

        One after the other they find in the caches what one layer leaves to the next: on 2 cores,
        pictures of a batch of 16 one by one are 1.2 times as fast as all at once.
        """
        return max(1, min(batch, threads))

    def infer(self, inputs: NDArray) -> HeadMaps | Peaks:
        """See `Backend.infer`; inputs are (n, H, W, 3) u8, BGR."""
        outputs: list[NDArray] = []
        slot = self._free.get()
        try:
            for first in range(0, len(inputs), self._at_once):
                some = slot.infer(inputs[first : first + self._at_once])
                if not outputs:
                    outputs = [np.empty((len(inputs), *one.shape[1:]), one.dtype) for one in some]
                # The slot's own memory is overwritten by its next inference.
                for output, part in zip(outputs, some, strict=True):
                    output[first : first + len(part)] = part
        finally:
            self._free.put(slot)
        return as_result(outputs, self.spec)


class WholeNetworkSlot:
    """The network in one piece, some pictures at a time."""

    def __init__(self, network: ov.CompiledModel) -> None:
        self._request = network.create_infer_request()

    def infer(self, inputs: NDArray[np.uint8]) -> list[NDArray]:
        """The network's outputs for (n, H, W, 3) u8 pictures, until the next call."""
        return run(self._request, [inputs])

"""OpenVINO on the CPU: u8 pictures in, normalisation inside the graph."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.preprocess import PrePostProcessor

from cfdist.backends.base import Backend, DeviceSettings
from cfdist.backends.onnx_file import as_result, load_onnx
from cfdist.decode import HeadMaps, Peaks
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract


class OpenVINOBackend(Backend):
    """An ONNX compiled by OpenVINO for the CPU.

    Each slot is a stream, and the streams share the device's threads: on a few cores one thread a
    stream gives 5 to 15 % more pictures a second than one stream of all threads.

    Options: `precision`, "f32", or "bf16" where the processor has it: faster, but no longer the
    model's numbers.
    """

    # OpenVINO 2026.4 on 2 cores: 2.2, 4.3 and 8.5 GB for 16, 32 and 64 pictures of 800x800.
    activation_bytes_per_pixel = 215

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        self.contract = InputContract(spec.height, spec.width, None)
        self.slots = max(1, min(settings.slots, settings.threads))
        compiled = compile_network(
            spec, settings.threads, self.slots, settings.options["precision"]
        )
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(self.slots):
            self._requests.put(compiled.create_infer_request())

    @classmethod
    def check(cls, spec: ModelSpec, options: dict[str, Any]) -> None:
        """See `Backend.check`."""
        load_onnx(spec)

    def infer(self, inputs: NDArray) -> HeadMaps | Peaks:
        """See `Backend.infer`; inputs are (n, H, W, 3) u8, BGR."""
        request = self._requests.get()
        try:
            request.infer([ov.Tensor(inputs, shared_memory=True)])
            # The request's own memory is overwritten by its next inference.
            outputs = [np.array(tensor.data) for tensor in request.output_tensors]
        finally:
            self._requests.put(request)
        return as_result(outputs, self.spec)


def compile_network(
    spec: ModelSpec, threads: int, streams: int, precision: str
) -> ov.CompiledModel:
    """Compile a CenterFace ONNX for the CPU; its input is (1 to batch, H, W, 3) u8, BGR."""
    return ov.Core().compile_model(
        _with_u8_input(spec),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # Left to itself, OpenVINO computes in bf16 on processors that can: head maps then
            # differ by up to 1.2.
            "INFERENCE_PRECISION_HINT": precision,
            # Several actors share a machine; each would pin its threads to the same cores.
            "ENABLE_CPU_PINNING": False,
        },
    )


def _with_u8_input(spec: ModelSpec) -> ov.Model:
    """The network for 1 to batch pictures, which it normalises itself."""
    network = load_onnx(spec)
    model = ov.Core().read_model(network.model.SerializeToString())
    if network.takes_u8:
        model.reshape([(1, spec.batch), spec.height, spec.width, 3])
        return model
    model.reshape([(1, spec.batch), 3, spec.height, spec.width])
    processor = PrePostProcessor(model)
    picture = processor.input()
    picture.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps = picture.preprocess().convert_element_type(ov.Type.f32)
    if spec.color == "RGB":
        steps.reverse_channels()
    if spec.scale != 1.0:
        steps.scale(1.0 / spec.scale)
    if any(spec.mean) or any(value != 1.0 for value in spec.std):
        steps.mean(list(spec.mean)).scale(list(spec.std))
    picture.model().set_layout(ov.Layout("NCHW"))
    return processor.build()

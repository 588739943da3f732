"""OpenVINO on the CPU: u8 pictures in, normalisation inside the graph."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.backends.onnx_file import load_onnx
from cfdist.backends.onnx_operators import odd_parts, standard_operators, wide_roundings
from cfdist.backends.outputs import as_result
from cfdist.backends.trial import refuse_if_it_fails
from cfdist.decode import HeadMaps, Peaks
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract

if TYPE_CHECKING:
    import openvino as ov  # the driver runs no model, and the import takes its time


class OpenVINOBackend(Backend):
    """An ONNX compiled by OpenVINO for the CPU.

    The device's streams share its threads: on a few cores one thread a stream gives 5 to 15 % more
    pictures a second than one stream of all threads.

    Options: `precision`, "f32", or "f16" or "bf16" where the processor has it: faster, but no
    longer the model's numbers. A device that would compute in another one is refused.
    """

    # OpenVINO 2026.4: 0.57 and 1.15 GB for 4 and 8 pictures of 800x800.
    capabilities: ClassVar[Capabilities] = Capabilities(
        activation_bytes_per_pixel=225,
        numeric_options=("precision",),
        streams_need_threads=True,
        takes_any_size=True,
    )

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        self.contract = InputContract(spec.height, spec.width, None)
        self.streams = max(1, min(settings.streams, settings.threads))
        self._at_once = self.pictures_at_once(spec.batch, settings.threads // self.streams)
        model = picture_model(load_onnx(spec), spec, self._at_once)
        compiled = compile_model(
            model, settings.threads, self.streams, settings.options["precision"]
        )
        self.runs_on = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        refuse_other_precision(compiled, settings.options["precision"])
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._idle.put(compiled.create_infer_request())

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`."""
        if parts := odd_parts(load_onnx(spec)):
            refuse_if_it_fails("openvino", spec, options, parts)

    @classmethod
    def pictures_at_once(cls, batch: int, threads: int) -> int:
        """See `Backend.pictures_at_once`: as many as the stream has threads.

        The caches then still hold what one layer leaves to the next; `benchmarks/tiles.py` says
        how much faster that is than the whole batch at once.
        """
        return max(1, min(batch, threads))

    def infer(self, inputs: NDArray[np.generic]) -> HeadMaps | Peaks:
        """See `Backend.infer`; inputs are (n, H, W, 3) u8, BGR."""
        outputs: list[NDArray[np.float32]] = []
        request = self._idle.get()
        try:
            for first in range(0, len(inputs), self._at_once):
                some = run(request, [inputs[first : first + self._at_once]])
                if not outputs:
                    outputs = [np.empty((len(inputs), *one.shape[1:]), one.dtype) for one in some]
                # The next run of the request overwrites `some`.
                for output, part in zip(outputs, some, strict=True):
                    output[first : first + len(part)] = part
        finally:
            self._idle.put(request)
        return as_result(outputs)


def picture_model(network: onnx.ModelProto, spec: ModelSpec, batch: int) -> ov.Model:
    """A network for 1 to `batch` pictures, (n, H, W, 3) u8 BGR, which it normalises itself.

    Raises:
        UserError: OpenVINO cannot read the graph.
    """
    if wide := wide_roundings(network):
        # Measured with 2026.4.1: cosines of 0.35 to 0.78 to what ONNX Runtime finds, and no error.
        raise UserError(
            f"model {spec.path}: rounds between its layers to {', '.join(wide)}, which OpenVINO "
            "computes wrongly; choose backend=onnxruntime"
        )
    try:
        return _picture_model(network, spec, batch)
    except RuntimeError as error:
        raise UserError(
            f"model {spec.path}: OpenVINO cannot read it ({said_by(error)}); choose "
            "backend=onnxruntime, or export it anew"
        ) from None


def _picture_model(network: onnx.ModelProto, spec: ModelSpec, batch: int) -> ov.Model:
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    model = ov.Core().read_model(standard_operators(network).SerializeToString())
    pictures: int | tuple[int, int] = batch if batch == 1 else (1, batch)
    # Measured on a CPU: with free sides a picture takes 1 to 4 % longer.
    sides = (-1, -1) if spec.size == "own" else (spec.height, spec.width)
    if model.input().element_type == ov.Type.u8:
        model.reshape([pictures, *sides, 3])
        return model
    model.reshape([pictures, 3, *sides])
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


def compile_model(model: ov.Model, threads: int, streams: int, precision: str) -> ov.CompiledModel:
    """Compile for the CPU, for streams that share the threads; precision: f32, f16 or bf16."""
    import openvino as ov

    return ov.Core().compile_model(
        model,
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


def refuse_other_precision(compiled: ov.CompiledModel, precision: str) -> None:
    """Raise a `UserError` if a model computes in another precision than asked: bf16 for f16."""
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != precision:
        raise UserError(
            f"backend.precision={precision}: this processor cannot, OpenVINO would compute in "
            f"{used}; set backend.precision={used}"
        )


def said_by(error: RuntimeError) -> str:
    """What OpenVINO says, without where in its own source it says so."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(told)[:300] or "no reason given"


def run(
    request: ov.InferRequest, inputs: Sequence[NDArray[np.generic]]
) -> list[NDArray[np.float32]]:
    """The outputs for C-contiguous inputs: the request's own memory, valid until its next run."""
    import openvino as ov

    request.infer([ov.Tensor(each, shared_memory=True) for each in inputs], share_outputs=True)
    return [tensor.data for tensor in request.output_tensors]

"""CenterFace compiled by OpenVINO for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import openvino as ov
from numpy.typing import NDArray
from openvino.preprocess import PrePostProcessor

from cfdist.backends.onnx_file import OnnxNetwork
from cfdist.model import ModelSpec


def compile_network(
    network: OnnxNetwork, spec: ModelSpec, batch: int, threads: int, streams: int, precision: str
) -> ov.CompiledModel:
    """Compile a network in one piece; its input is (1 to batch, H, W, 3) u8, BGR."""
    if network.takes_u8:
        model = ov.Core().read_model(network.model.SerializeToString())
        model.reshape([_up_to(batch), spec.height, spec.width, 3])
    else:
        model = taking_pictures(network.model, spec, (spec.height, spec.width), batch)
    return compile_model(model, threads, streams, precision)


def compile_model(model: ov.Model, threads: int, streams: int, precision: str) -> ov.CompiledModel:
    """Compile for some streams that share some threads."""
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


def taking_pictures(
    network: onnx.ModelProto, spec: ModelSpec, sides: tuple[int, int], batch: int
) -> ov.Model:
    """A network of one float32 input, for 1 to batch u8 pictures that it normalises itself.

    Args:
        network: Its input is (batch, 3, h, w) float32, normalised as the spec says.
        spec: The normalisation.
        sides: h and w.
        batch: Pictures, at most.
    """
    model = ov.Core().read_model(network.SerializeToString())
    model.reshape([_up_to(batch), 3, *sides])
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


def giving_channels_last(model: ov.Model) -> ov.Model:
    """The model with outputs that are NHWC instead of NCHW."""
    processor = PrePostProcessor(model)
    for i in range(len(model.outputs)):
        processor.output(i).model().set_layout(ov.Layout("NCHW"))
        processor.output(i).tensor().set_layout(ov.Layout("NHWC"))
    return processor.build()


def taking_channels_last(network: onnx.ModelProto, batch: int) -> ov.Model:
    """A network for inputs of 1 to batch that are NHWC instead of NCHW."""
    model = ov.Core().read_model(network.SerializeToString())
    model.reshape(
        {
            taken.any_name: [_up_to(batch), *(dim.get_length() for dim in taken.partial_shape[1:])]
            for taken in model.inputs
        }
    )
    processor = PrePostProcessor(model)
    for i in range(len(model.inputs)):
        processor.input(i).tensor().set_layout(ov.Layout("NHWC"))
        processor.input(i).model().set_layout(ov.Layout("NCHW"))
    return processor.build()


def run(request: ov.InferRequest, inputs: Sequence[NDArray]) -> list[NDArray]:
    """The outputs for some C-contiguous inputs: the request's own memory, until its next run."""
    request.infer([ov.Tensor(each, shared_memory=True) for each in inputs], share_outputs=True)
    return [tensor.data for tensor in request.output_tensors]


def _up_to(batch: int) -> int | tuple[int, int]:
    return batch if batch == 1 else (1, batch)

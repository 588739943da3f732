"""Two graphs of one topology, tensor by tensor, on the same pictures, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cfdist.backends.model import BackendModel
from cfdist.backends.onnx_file import load_onnx, takes_u8
from cfdist.backends.onnx_operators import quantised_operators
from cfdist.comparison.differences import HeadDifference, head_difference
from cfdist.comparison.dump import DumpedModel
from cfdist.comparison.ir import Run, load_ir, loaded, read_ir
from cfdist.comparison.topology import Layer, Matched
from cfdist.config import CompareConfig
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.model.formats import CHECKPOINT, OM, ONNX, OPENVINO_IR, format_of
from cfdist.preprocess import InputContract, PictureError, to_model_input
from cfdist.widerface.manifest import WorkItem

# What the tensors of a part may take, of one picture and one side; more pieces take more time.
PART_BYTES = 128 << 20

_QDQ = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class LayerModel:
    """A side of the comparison.

    Attributes:
        runtime: "onnxruntime" or "openvino"; "ir": OpenVINO, from its own file.
        spec: How the graph is fed.
        graph: The graph, as `load_onnx` or `read_ir` gives it.
    """

    runtime: str
    spec: ModelSpec
    graph: onnx.ModelProto

    def part(self, tensors: Sequence[str]) -> Run:
        """The graph up to some tensors, loaded: an input in, these tensors out."""
        if self.runtime == "ir":
            return load_ir(self.spec, tensors)
        graph = _up_to(self.graph, tensors)
        load = _load_openvino if self.runtime == "openvino" else _load_onnxruntime
        return load(graph, list(tensors))

    def input(self, letterboxed: NDArray[np.uint8]) -> NDArray[Any]:
        """The graph's input for (n, H, W, 3) u8 letterboxed pictures."""
        spec = self.spec
        contract = InputContract(spec.height, spec.width, None)
        if not takes_u8(self.graph):
            contract = spec.float_contract()
        return np.ascontiguousarray(to_model_input(letterboxed, contract))


def load_side(model: BackendModel, side: str, folder: Path) -> LayerModel:
    """A side's graph; that of a checkpoint is exported into `folder` first.

    Raises:
        UserError: the model's tensors cannot be had.
    """
    spec = model.spec
    setting = f"{side}={spec.path}"
    found = format_of(spec.path)
    if found is OPENVINO_IR:
        return LayerModel("ir", spec, read_ir(spec))
    if found is CHECKPOINT:
        from cfdist.backends.torch import load_spec_network
        from cfdist.network.export import export_onnx

        path = folder / f"{side}.onnx"
        export_onnx(load_spec_network(spec), path, spec.float_contract())
        spec = replace(spec, path=path, outputs=None, needs_outputs=False)
    elif found is not ONNX:
        what = found.name if found else "no ONNX"
        remedy = "compare it without compare.layers, and the ONNX that it was made from with it"
        if found is OM and side == "candidate":
            remedy = (
                "give the NPU's own dump of them, compare.dump=FOLDER (docs/ascend.md), or "
                + remedy
            )
        elif found is OM:
            remedy = "give the ONNX that it was made from as reference, and the OM as candidate"
        raise UserError(f"{setting}: is {what}, of which only the outputs can be had; {remedy}")
    graph = load_onnx(spec)
    if names := [one for one in quantised_operators(graph) if one not in _QDQ]:
        raise UserError(
            f"{setting}: is quantised to operators on bytes ({', '.join(names)}), whose tensors "
            "are no floats; compare.layers takes the QDQ form (QuantizeLinear, DequantizeLinear)"
        )
    return LayerModel("openvino" if model.backend == "openvino" else "onnxruntime", spec, graph)


def _up_to(graph: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A graph without what these tensors do not depend on; they are its outputs."""
    cut = onnx.ModelProto()
    cut.CopyFrom(graph)
    needed = set(tensors)
    nodes = []
    for node in reversed(graph.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    del cut.graph.node[:], cut.graph.output[:], cut.graph.value_info[:], cut.graph.initializer[:]
    cut.graph.node.extend(reversed(nodes))
    cut.graph.initializer.extend(one for one in graph.graph.initializer if one.name in needed)
    cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return cut


def _load_onnxruntime(graph: onnx.ModelProto, tensors: list[str]) -> Run:
    import onnxruntime as ort

    from cfdist.backends.onnxruntime import NOT_AS_WRITTEN
    from cfdist.backends.provider_options import CPU_PROVIDER

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = ort.InferenceSession(
        graph.SerializeToString(),
        options,
        providers=[CPU_PROVIDER],
        disabled_optimizers=NOT_AS_WRITTEN,
    )
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(tensors, {name: inputs})


def _load_openvino(graph: onnx.ModelProto, _: list[str]) -> Run:
    import openvino as ov

    model = ov.Core().read_model(graph.SerializeToString())
    shape = [one.dim_value or 1 for one in graph.graph.input[0].type.tensor_type.shape.dim]
    model.reshape(shape)
    return loaded(model)


def letterboxed_pictures(
    items: Sequence[WorkItem], count: int, model: LayerModel
) -> tuple[list[NDArray[np.uint8]], dict[str, str]]:
    """Pictures from all over a data set, letterboxed, and those that could not be read, with why.

    Raises:
        UserError: none can be read.
    """
    rows: list[NDArray[np.uint8]] = []
    failures: dict[str, str] = {}
    count = min(count, len(items))
    for i in range(count):
        item = items[i * len(items) // count]
        row = np.empty((1, model.spec.height, model.spec.width, 3), np.uint8)
        try:
            item.fill(row[0])
            rows.append(row)
        except PictureError as error:
            failures[item.id] = str(error)
    if not rows:
        (id, reason), *_ = failures.items()
        raise UserError(f"dataset: none of {count} pictures can be read; the first, {id}: {reason}")
    return rows, failures


def compare_layers(
    sides: tuple[LayerModel, LayerModel | DumpedModel],
    matched: Matched,
    pictures: Sequence[NDArray[np.uint8]],
    say: Callable[[str], None],
) -> list[HeadDifference]:
    """The differences of each pair of tensors, over all pictures.

    A part of the tensors is looked at at a time: as many as `PART_BYTES` hold.

    Args:
        sides: Reference and candidate.
        matched: Their layers.
        pictures: Each a batch of one, (1, H, W, 3) u8, letterboxed.
        say: Gets a line on what is done.
    """
    sums = [HeadDifference() for _ in matched.pairs]
    done = 0
    for first, last in _parts([a for a, _ in matched.pairs]):
        names = zip(*((a.tensor, b.tensor) for a, b in matched.pairs[first:last]), strict=True)
        runs = [side.part(tensors) for side, tensors in zip(sides, names, strict=True)]
        for letterboxed in pictures:
            both = [run(side.input(letterboxed)) for run, side in zip(runs, sides, strict=True)]
            for i, (a, b) in enumerate(zip(*both, strict=True), start=first):
                sums[i] = sum(map(head_difference, a[0], b[0]), sums[i])
        done = last
        say(f"{done} of {len(sums)} tensors")
    return sums


def _parts(layers: Sequence[Layer]) -> Iterator[tuple[int, int]]:
    """First and behind-last place of each part."""
    first, held = 0, 0
    for i, layer in enumerate(layers):
        size = 4 * prod(layer.shape)
        if i > first and held + size > PART_BYTES:
            yield first, i
            first, held = i, 0
        held += size
    if layers:
        yield first, len(layers)


def layers_section(
    matched: Matched, sums: Sequence[HeadDifference], limits: CompareConfig
) -> dict[str, Any]:
    """What the results hold of a comparison by layers.

    Returns:
        "matched": how; "layers": an entry for each pair; "first_different" and "first_past": the
        entry of the first that is not bit-equal, and past a tolerance; `None` if there is none;
        "within", "within_tolerance".
    """
    entries = []
    for (a, b), apart in zip(matched.pairs, sums, strict=True):
        # Written so that NaN is past the tolerance, too.
        within = apart.relative <= limits.relative and apart.cosine >= limits.cosine
        entries.append(
            {
                "tensor": a.tensor,
                "candidate_tensor": b.tensor,
                "operator": a.operator,
                "weights": list(a.weights),
                "shape": list(a.shape),
                "max": apart.largest,
                "mean": apart.mean,
                "relative": apart.relative,
                "cosine": apart.cosine,
                "within": bool(within),
            }
        )
    past = next((one for one in entries if not one["within"]), None)
    return {
        "matched": matched.how,
        "layers": entries,
        "first_different": next((one for one in entries if one["max"] != 0), None),
        "first_past": past,
        "within": {"layers": past is None},
        "within_tolerance": past is None,
    }

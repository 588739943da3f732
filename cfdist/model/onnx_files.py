"""The files of an ONNX: the graph's, and those that hold weights beside it ("external data")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cfdist.errors import UserError

if TYPE_CHECKING:  # loaded where it is needed: most processes of a run never look into an ONNX
    import onnx

# Protobuf holds no more in one message, and runtimes are given the whole model as one.
_MAX_BYTES = 2**31 - 1


def parse_graph(path: Path) -> onnx.ModelProto | None:
    """An ONNX without the weights that lie in other files; `None` if the file is no ONNX.

    Raises:
        OSError: the file cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if path.stat().st_size > _MAX_BYTES:
        return None
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError):
        return None
    # Other files can happen to be a message, but none with these two fields.
    return model if model.ir_version > 0 and len(model.graph.node) else None


def weight_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files beside an ONNX that hold its weights, each once, by name; most have none.

    Args:
        model: What `parse_graph` gave.
        path: Its file; weights lie in its folder, or in one below.

    Raises:
        UserError: a file of weights is missing, too short, or outside of that folder.
    """
    import onnx

    found: dict[Path, int] = {}
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file, end = _place(tensor, path)
            found[file] = max(end, found.get(file, 0))
    total = path.stat().st_size + sum(file.stat().st_size for file in found)
    if found and total > _MAX_BYTES:
        raise UserError(
            f"model {path}: has {total / 1e9:.1f} GB with its weights, more than an ONNX in one "
            "piece can have (2 GB); give a CenterFace, which has a few MB"
        )
    return sorted(found)


def weight_places(model: onnx.ModelProto) -> list[str]:
    """Where an ONNX says that its weights lie, relative to its folder; without what leads out."""
    tensors = (one for one in all_tensors(model) if one.data_location == one.EXTERNAL)
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    places = {entry.value for entry in entries if entry.key == "location"}
    return sorted(
        place
        for place in places
        if place and not place.startswith("/") and not {"..", "\0"} & {*place.split("/"), *place}
    )


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The constant tensors of a model, wherever in it they are."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _dense_parts(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        yield from _dense_parts([*sparse, *attribute.sparse_tensors])
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from _graph_tensors(graph)


def _dense_parts(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for sparse in tensors:
        yield from (sparse.values, sparse.indices)


def _place(tensor: onnx.TensorProto, path: Path) -> tuple[Path, int]:
    """The file of a tensor's values, and the byte after their last."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = where.get("location", "")
    model = f"model {path}: its weights {tensor.name!r}"
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        is_inside = file.is_relative_to(folder) and not Path(location).is_absolute()
    except (OSError, ValueError, RuntimeError):  # a null byte, a circle of links
        is_inside = False
    if not location or not is_inside or file == path.resolve():
        raise UserError(
            f"{model} are said to lie in {location!r}, which is not a file below the model's own "
            "folder; such a file is not read: export the ONNX anew"
        )
    if not file.is_file():
        raise UserError(
            f"{model} lie in {location!r}, which is not in {folder}; put that file beside the "
            "model, or export the ONNX in one file"
        )
    try:
        offset, length = int(where.get("offset") or 0), int(where.get("length") or 0)
    except ValueError:
        offset = length = -1
    if min(offset, length) < 0:
        raise UserError(
            f"{model} have no valid place in {location!r}; the file is damaged, export it anew"
        )
    size, end = file.stat().st_size, offset + (length or _bytes_of(tensor))
    if end > size:
        raise UserError(
            f"{model} end at byte {end} of {location!r}, which has {size}; it was cut short or "
            "belongs to another model: copy it anew, beside its own .onnx"
        )
    return file, end


def _bytes_of(tensor: onnx.TensorProto) -> int:
    """What a tensor's values take, bytes; those smaller than a byte are packed."""
    import onnx

    halves = (onnx.TensorProto.UINT4, onnx.TensorProto.INT4, onnx.TensorProto.FLOAT4E2M1)
    count = int(math.prod(tensor.dims))
    if tensor.data_type in halves:
        return (count + 1) // 2
    try:
        return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError, ValueError):  # no such type: the checker refuses it
        return count

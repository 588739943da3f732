"""The double's OM file: `IMOD`, the header's length, a JSON header, an ONNX."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import struct
from pathlib import Path

import onnx

MAGIC = b"IMOD"
FORMAT_NCHW, FORMAT_NHWC, FORMAT_ND = 0, 1, 2  # aclFormat of CANN's acl_base.h

dtype = enum.IntEnum(
    "dtype",
    "int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 double bool",
    start=0,
)


class AclError(RuntimeError):
    """What the real extension throws: a RuntimeError whose text begins with a code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"[{code}][ACL] {message}")


@dataclasses.dataclass
class TensorDesc:
    """One input or output as `get_inputs` and `get_outputs` give it; sizes in bytes."""

    name: str
    datatype: dtype
    format: int
    shape: list[int]
    size: int
    realsize: int


@dataclasses.dataclass
class OmHeader:
    """What ATC would have decided.

    Attributes:
        inputs: One (name, dtype, format, shape).
        outputs: The same, in the ONNX's order.
        aipp: `parse_aipp`'s result, `None` where the input is float32 NCHW.
        soc_version: The chip it was made for.
        flags: Further options that the converter was given, as they came.
        batches: The batches of an OM that takes them at run time, rising; its input's first side is
            then -1, and its outputs' the largest.
        sizes: The [height, width] of an OM that takes them at run time; these sides are then -1,
            and its outputs those of the largest size.
    """

    inputs: list[list]
    outputs: list[list]
    aipp: dict | None
    soc_version: str
    flags: dict
    batches: list[int] = dataclasses.field(default_factory=list)
    sizes: list[list[int]] = dataclasses.field(default_factory=list)


def describe(tensors: list[list], sides: tuple[int, ...] = ()) -> list[TensorDesc]:
    """Header rows to descriptions; bytes are those of `sides` where sides are open."""
    rows = []
    for name, kind, layout, shape in tensors:
        items, chosen = 1, iter(sides)
        for side in shape:
            items *= next(chosen) if side < 0 else side
        size = items * {"uint8": 1, "float16": 2, "float32": 4, "int64": 8}[kind]
        rows.append(TensorDesc(name, dtype[kind], layout, list(shape), size, size))
    return rows


def read_om(path: str) -> tuple[OmHeader, bytes]:
    """Header and ONNX of an OM file.

    Raises:
        AclError: 145002 (no such file) or 145000 (not an OM of this double).
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise AclError(145002, f"load model from file failed: {path}: {error.strerror}") from None
    try:
        if content[:4] != MAGIC:
            raise ValueError("no IMOD at its start")
        (length,) = struct.unpack_from("<I", content, 4)
        header = OmHeader(**json.loads(content[8 : 8 + length]))
        graph = content[8 + length :]
        onnx.load_from_string(graph)
    except Exception as error:
        raise AclError(145000, f"load model from data failed: {path}: {error}") from None
    return header, graph


def parse_aipp(text: str) -> dict:
    """The normalisation of a static AIPP file; all that this double applies.

    Raises:
        ValueError: a key that is missing or has a value which this double does not play.
    """
    block = re.search(r"aipp_op\s*\{(.*)\}", text, re.DOTALL)
    if block is None:
        raise ValueError("no aipp_op { }")
    pairs = dict(re.findall(r"(\w+)\s*:\s*([\w.+-]+)", block[1]))
    fixed = {"aipp_mode": "static", "input_format": "RGB888_U8", "crop": "false"}
    for key, value in fixed.items():
        if pairs.get(key) != value:
            raise ValueError(f"{key} is {pairs.get(key)}, expected {value}")
    return {
        "width": int(pairs["src_image_size_w"]),
        "height": int(pairs["src_image_size_h"]),
        "swap": pairs.get("rbuv_swap_switch", "false") == "true",
        "min": [float(pairs[f"min_chn_{i}"]) for i in range(3)],
        "var_reci": [float(pairs[f"var_reci_chn_{i}"]) for i in range(3)],
    }


def make_om(
    onnx_model: Path | str | bytes,
    out_path: Path | str,
    batch: int | list[int],
    aipp: dict | str | None = None,
    fp16: bool = False,
    *,
    height: int | None = None,
    width: int | None = None,
    soc_version: str = "Ascend310P3",
    flags: dict | None = None,
    sizes: list[list[int]] | None = None,
) -> Path:
    """Write an OM, as `atc` would have from the same ONNX.

    Args:
        onnx_model: Path or content.
        out_path: The .om file.
        batch: Its static batch, or the batches that it takes at run time.
        aipp: AIPP file's text, or `parse_aipp`'s result; the input is then uint8 NHWC.
        fp16: Whether outputs are float16.
        height: Input rows; those that the ONNX declares where `None`.
        width: Input columns; as `height`.
        soc_version: The chip.
        flags: Kept in the header.
        sizes: The [height, width] that it takes at run time, in place of `height` and `width`.

    Returns:
        `out_path`.

    Raises:
        ValueError: AIPP for another size, or an ONNX that does not infer at this shape.
    """
    model = (
        onnx.load_from_string(onnx_model)
        if isinstance(onnx_model, bytes)
        else onnx.load(str(onnx_model))
    )
    batches = sorted(batch) if isinstance(batch, list) else []
    if batches and (len(batches) < 2 or len(set(batches)) < len(batches)):
        raise ValueError(f"dynamic_batch_size {batches}: two or more different ones")
    batch = max(batches) if batches else batch
    for rows, columns in sorted(sizes, key=math.prod) if sizes else [(height, width)]:
        picture = _fix_shape(model, batch, rows, columns)
    declared = [d.dim_value for d in picture.type.tensor_type.shape.dim]
    aipp = parse_aipp(aipp) if isinstance(aipp, str) else aipp
    if aipp is None:
        inputs = [[picture.name, "float32", FORMAT_NCHW, declared]]
    else:
        if (aipp["height"], aipp["width"]) != ((0, 0) if sizes else tuple(declared[2:])):
            raise ValueError(f"AIPP of {aipp['height']}x{aipp['width']} for {declared}")
        inputs = [[picture.name, "uint8", FORMAT_NHWC, [batch, *declared[2:], 3]]]
    header = OmHeader(
        inputs, _outputs(model, fp16), aipp, soc_version, flags or {}, batches, sizes or []
    )
    if batches:
        inputs[0][3] = [-1, *inputs[0][3][1:]]
        _free_sides(model, (0,))
    elif sizes:
        inputs[0][3] = [batch, 3, -1, -1] if aipp is None else [batch, -1, -1, 3]
        _free_sides(model, (2, 3))
    text = json.dumps(dataclasses.asdict(header)).encode()
    Path(out_path).write_bytes(
        MAGIC + struct.pack("<I", len(text)) + text + model.SerializeToString()
    )
    return Path(out_path)


def _fix_shape(
    model: onnx.ModelProto, batch: int, height: int | None, width: int | None
) -> onnx.ValueInfoProto:
    """Bind the one picture input to (batch, 3, height, width) and infer all other shapes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ValueError(f"{len(inputs)} inputs, expected 1")
    # ONNX Runtime folds nothing into weights that are inputs too, as old exporters list them.
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    shape = [batch, 3, height or dims[2].dim_value, width or dims[3].dim_value]
    for dim, side in zip(dims, shape, strict=True):
        dim.Clear()
        dim.dim_value = side
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model.graph.input[0]


def _free_sides(model: onnx.ModelProto, axes: tuple[int, ...]) -> None:
    """Take any number of these axes again."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for axis in axes:
            dim = value.type.tensor_type.shape.dim[axis]
            dim.Clear()
            dim.dim_param = f"{value.name}_{axis}"


def _outputs(model: onnx.ModelProto, fp16: bool) -> list[list]:
    """Rows named `<node>:<index>:<graph output>`, as an OM names its outputs."""
    rows = []
    for output in model.graph.output:
        node = next(node for node in model.graph.node if output.name in node.output)
        index = list(node.output).index(output.name)
        name = f"{node.name or node.op_type}:{index}:{output.name}"
        shape = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
        whole = output.type.tensor_type.elem_type == onnx.TensorProto.INT64
        kind = "int64" if whole else "float16" if fp16 else "float32"
        rows.append([name, kind, FORMAT_ND, shape])
    return rows

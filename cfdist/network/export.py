"""From the PyTorch network to an ONNX file that is checked before it appears."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from cfdist.decode import PEAK_OUTPUTS, PEAK_VALUES, STRIDE
from cfdist.errors import UserError
from cfdist.files import atomic_write
from cfdist.network.centerface import CenterFace, Normalize, fold_batch_norms
from cfdist.preprocess import InputContract

INPUT_NAME = "image"
HEAD_NAMES = ("output1", "output2", "output3", "output4")  # hm, wh, hm_offset, landmarks

# More than float32 rounding explains, less than what moves a box by a pixel.
MAX_DIFFERENCE = 1e-3


def export_onnx(
    network: CenterFace,
    output: Path,
    contract: InputContract,
    *,
    opset: int = 11,
    takes_u8: bool = False,
    top_k: int | None = None,
    pictures: NDArray[np.uint8] | None = None,
) -> dict[str, Any]:
    """Write the network as ONNX, batch norms folded, with a free batch axis.

    The input is `image`: (batch, 3, height, width) float32, normalised, or, with `takes_u8`,
    (batch, height, width, 3) uint8 BGR, letterboxed. The outputs are `output1` to `output4` (heat
    map, size, offset, landmarks), or, with `top_k`, what `cfdist.decode.select_peaks` finds in
    them: `scores` (batch, top_k) float32, falling, 0 where there are no more peaks; `cells`
    (batch, top_k) int64, row * map width + column; `values` (batch, top_k, 14) float32: size,
    offset, landmarks. Rows with score 0 are no peaks, and their cells and values mean nothing.
    Among equal scores ONNX's TopK puts the lower cell first, as `select_peaks` does. ONNX Runtime
    follows that; OpenVINO gives equal scores in any order.

    The file appears after it has passed ONNX's own checker and a comparison with PyTorch, which
    runs the unfolded network on the host's normalisation.

    Args:
        network: On the CPU, float32; left as it is.
        output: The file to write.
        contract: The network's own input, float32 NCHW: size, colour order, normalisation.
        opset: ONNX operator set, 11 to 17. ATC of CANN 6 takes 11, which is the first with Equal
            on floats and GatherElements; 17 is the last that PyTorch's TorchScript exporter knows.
        takes_u8: Whether the input is the pictures' bytes, which the graph normalises.
        top_k: Peaks per picture that the graph puts out; `None`: it puts out head maps.
        pictures: (n, height, width, 3) uint8 BGR, letterboxed: compared besides random pictures.

    Returns:
        The section `export` of the results: "path", "opset", "bytes", "input" with "dtype" and
        declared "shape", "outputs" (name -> declared shape) and "max_difference" (kind of picture,
        "random" or "real" -> output name -> the largest absolute difference between ONNX Runtime
        and PyTorch; for `cells` between the score and PyTorch's heat map in that cell).

    Raises:
        UserError: more peaks than cells, a file that cannot be written, or a graph that differs
            from the network by more than `MAX_DIFFERENCE`; no file is left.
    """
    normalize = Normalize(contract)
    picker = None if top_k is None else _PickPeaks(contract, top_k)
    graph = nn.Sequential(
        normalize if takes_u8 else nn.Identity(),
        fold_batch_norms(network),
        picker or nn.Identity(),
    )
    # Two random pictures show whether the batch axis is free: the traced batch is 1.
    shape = (2, contract.height, contract.width, 3)
    kinds = {"random": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}
    if pictures is not None:
        kinds["real"] = pictures
    # Channels last is several times faster on a CPU and computes the same. PyTorch's type hints
    # lack this form of its own method.
    unfolded = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    feeds, heads = {}, {}
    with torch.inference_mode():
        for kind, letterboxed in kinds.items():
            normalized = normalize(torch.from_numpy(letterboxed))
            feeds[kind] = letterboxed if takes_u8 else normalized.contiguous().numpy()
            heads[kind] = unfolded(normalized)
    try:
        with atomic_write(output) as temporary:
            model = _write(graph, temporary, feeds["random"][:1], opset, top_k)
            differences = {
                kind: _differences(temporary, feeds[kind], heads[kind], picker) for kind in kinds
            }
            _check(differences, output)
    except OSError as error:
        raise UserError(
            f"export to {output}: cannot be written ({error.strerror or error}); "
            "give the path of a file in a folder that can be written to"
        ) from None
    dtype = "uint8" if takes_u8 else "float32"
    return {
        "path": str(output),
        "opset": opset,
        "bytes": output.stat().st_size,
        "input": {"dtype": dtype, "shape": _declared_shape(model.graph.input[0])},
        "outputs": {value.name: _declared_shape(value) for value in model.graph.output},
        "max_difference": differences,
    }


class _PickPeaks(nn.Module):
    """`cfdist.decode.select_peaks` in operators of ONNX opset 11.

    Raises:
        UserError: more peaks than cells.
    """

    def __init__(self, contract: InputContract, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.cells = (contract.height // STRIDE) * (contract.width // STRIDE)
        if not 1 <= top_k <= self.cells:
            raise UserError(
                f"model.top_k={top_k}: a {contract.width}x{contract.height} input has "
                f"{self.cells} output cells; choose 1 to {self.cells}"
            )

    def forward(self, heads: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        hm, *others = heads
        is_peak = hm == nn.functional.max_pool2d(hm, 3, stride=1, padding=1)
        # A cell that is no peak scores 0, below every peak: the heat map is a sigmoid's.
        scores, cells = (hm * is_peak).reshape(-1, self.cells).topk(self.top_k)
        values = torch.cat(others, dim=1).reshape(-1, PEAK_VALUES, self.cells)
        # A concatenation, because expand and repeat bring shape arithmetic into the graph.
        picked = values.gather(2, torch.cat([cells.unsqueeze(1)] * PEAK_VALUES, dim=1))
        return scores, cells, picked.transpose(1, 2)


def _write(
    graph: nn.Module, path: Path, example: NDArray[np.generic], opset: int, top_k: int | None
) -> onnx.ModelProto:
    """Trace the graph into an ONNX file and have ONNX check it."""
    outputs = HEAD_NAMES if top_k is None else PEAK_OUTPUTS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's are for its own developers
        torch.onnx.export(
            graph.eval(),
            (torch.from_numpy(example),),
            str(path),
            input_names=[INPUT_NAME],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in (INPUT_NAME, *outputs)},
            opset_version=opset,
            # The newer exporter writes opset 18 and above, which ATC of CANN 6 does not take.
            dynamo=False,
        )
    model = onnx.load(str(path))
    if top_k is not None:
        # The exporter does not know the shapes of TopK's outputs.
        for output in model.graph.output:
            output.type.tensor_type.shape.dim[1].dim_value = top_k
        onnx.save(model, str(path))
    onnx.checker.check_model(model, full_check=True)
    return model


def _differences(
    path: Path, feed: NDArray[np.generic], heads: Sequence[torch.Tensor], picker: _PickPeaks | None
) -> dict[str, float]:
    """Largest absolute difference of each output of the file from PyTorch's head maps.

    Cells are not compared with cells: rounding can swap two peaks of nearly the same score.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    outputs = [torch.from_numpy(array) for array in session.run(None, {INPUT_NAME: feed})]
    if picker is None:
        pairs = dict(zip(HEAD_NAMES, zip(outputs, heads, strict=True), strict=True))
    else:
        scores, cells, values = outputs
        is_peak = scores > 0
        hm, *others = heads
        by_cell = torch.cat(others, dim=1).flatten(2).transpose(1, 2)
        at_cells = by_cell.gather(1, cells.unsqueeze(2).expand(-1, -1, PEAK_VALUES))
        pairs = {
            "scores": (scores, picker(heads)[0]),
            "cells": (scores[is_peak], hm.flatten(1).gather(1, cells)[is_peak]),
            "values": (values[is_peak], at_cells[is_peak]),
        }
    return {
        name: float(np.abs(output.numpy() - wanted.numpy()).max(initial=0))
        for name, (output, wanted) in pairs.items()
    }


def _check(differences: dict[str, dict[str, float]], output: Path) -> None:
    for kind, by_output in differences.items():
        for name, difference in by_output.items():
            # Written so that NaN is refused too.
            if not difference <= MAX_DIFFERENCE:
                raise UserError(
                    f"export to {output}: {name} differs from PyTorch by {difference:.3g} on "
                    f"{kind} pictures, more than {MAX_DIFFERENCE:g}; no file was written"
                )


def _declared_shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)

"""From the PyTorch network to an ONNX file that is checked before it appears."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from cfdist.decode import PEAK_OUTPUTS, STRIDE, TOP_K
from cfdist.errors import UserError
from cfdist.files import atomic_write
from cfdist.network.centerface import CenterFace, fold_batch_norms
from cfdist.network.normalize import Normalize
from cfdist.preprocess import InputContract

INPUT_NAME = "image"
HEAD_NAMES = ("output1", "output2", "output3", "output4")  # hm, wh, hm_offset, landmarks

# 11 is what ATC of CANN 6 takes and the first with Equal on floats and GatherElements; 17 is the
# last for which PyTorch's TorchScript exporter has its own operators.
OPSETS = range(11, 18)

# More than float32 rounding explains, less than what moves a box by a pixel.
MAX_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class ExportSettings:
    """What the ONNX takes and gives.

    Attributes:
        network_input: The network's own input, float32 NCHW: size, colour order, normalisation.
        opset: One of `OPSETS`.
        takes_u8: Whether the pictures' bytes are the input, normalised inside the graph.
        picks_peaks: Whether the graph puts out peaks instead of head maps.
        top_k: Peaks a picture.
    """

    network_input: InputContract
    opset: int = OPSETS[0]
    takes_u8: bool = False
    picks_peaks: bool = False
    top_k: int = TOP_K

    @property
    def cells(self) -> int:
        """Cells of a head map."""
        return (self.network_input.height // STRIDE) * (self.network_input.width // STRIDE)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs' names."""
        return PEAK_OUTPUTS if self.picks_peaks else HEAD_NAMES

    def normalize(self) -> Normalize:
        """The layer from letterboxed pictures to the network's own input."""
        own = self.network_input
        return Normalize(own.color, own.scale, own.mean, own.std)


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from the PyTorch network.

    Attributes:
        path: The ONNX file.
        opset: Its operator set.
        size: Bytes.
        input_shape: As declared, the batch axis by name.
        input_dtype: "float32" or "uint8".
        output_shapes: By output name, as declared.
        differences: By kind of picture ("random", "real"), then output name: the largest absolute
            difference between ONNX Runtime and PyTorch. For `cells` it is the difference between
            the score and PyTorch's heat map in that cell.
    """

    path: Path
    opset: int
    size: int
    input_shape: tuple[int | str, ...]
    input_dtype: str
    output_shapes: dict[str, tuple[int | str, ...]]
    differences: dict[str, dict[str, float]]


def export_onnx(
    network: CenterFace,
    output: Path | str,
    settings: ExportSettings,
    pictures: NDArray[np.uint8] | None = None,
) -> ExportReport:
    """Write the network as ONNX, batch norms folded, with a free batch axis.

    The input is `image`: (batch, 3, height, width) float32, normalised, or, with `takes_u8`,
    (batch, height, width, 3) uint8 BGR, letterboxed. The outputs are `output1` to `output4` (heat
    map, size, offset, landmarks), or, with `picks_peaks`, what `cfdist.decode.select_peaks` finds
    in them: `scores` (batch, top_k) float32, falling, 0 where there are no more peaks; `cells`
    (batch, top_k) int64, row * map width + column; `values` (batch, top_k, 14) float32: size,
    offset, landmarks. Rows with score 0 are no peaks, whatever their cells and values. Among equal
    scores ONNX's TopK puts the lower cell first, as `select_peaks` does; ONNX Runtime holds to
    that, OpenVINO gives them in any order.

    The file appears only after it passed ONNX's own checker and a comparison with PyTorch, which
    runs the unfolded network on the host's normalisation.

    Args:
        network: On the CPU, float32; left as it is.
        output: The file to write.
        settings: What the ONNX takes and gives.
        pictures: (n, height, width, 3) uint8 BGR, letterboxed: compared besides random pictures.

    Raises:
        UserError: more peaks than cells, a file that cannot be written, or a graph that differs
            from the network by more than `MAX_DIFFERENCE`; no file is left.
    """
    _check_top_k(settings)
    graph = nn.Sequential(
        settings.normalize() if settings.takes_u8 else nn.Identity(),
        fold_batch_norms(network),
        _PickPeaks(settings.top_k, settings.cells) if settings.picks_peaks else nn.Identity(),
    )
    kinds = {"random": _random_pictures(settings.network_input)}
    if pictures is not None:
        kinds["real"] = pictures
    try:
        with atomic_write(output) as temporary:
            _trace_to_onnx(graph, temporary, settings)
            model = _checked(temporary, settings)
            session = _session(temporary)
            differences = {
                kind: _compare(network, session, settings, kinds[kind]) for kind in kinds
            }
            _check_differences(differences, output)
            size = temporary.stat().st_size
    except OSError as error:
        raise UserError(
            f"export to {output}: cannot be written ({error.strerror or error}); "
            "give the path of a file in a folder that can be written to"
        ) from None
    return ExportReport(
        path=Path(output),
        opset=settings.opset,
        size=size,
        input_shape=_declared_shape(model.graph.input[0]),
        input_dtype="uint8" if settings.takes_u8 else "float32",
        output_shapes={value.name: _declared_shape(value) for value in model.graph.output},
        differences=differences,
    )


class _PickPeaks(nn.Module):
    """`cfdist.decode.select_peaks` in operators of ONNX opset 11."""

    def __init__(self, top_k: int, cells: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.cells = cells

    def forward(self, heads: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hm, *others = heads
        is_peak = hm == nn.functional.max_pool2d(hm, 3, stride=1, padding=1)
        # A cell that is no peak scores 0, below every peak: the heat map is a sigmoid's.
        scores, cells = (hm * is_peak).reshape(-1, self.cells).topk(self.top_k)
        values = torch.cat(others, dim=1).reshape(-1, 14, self.cells)
        # A concatenation, because expand and repeat bring shape arithmetic into the graph.
        picked = values.gather(2, torch.cat([cells.unsqueeze(1)] * 14, dim=1))
        return scores, cells, picked.transpose(1, 2)


def _compare(
    network: CenterFace,
    session: ort.InferenceSession,
    settings: ExportSettings,
    pictures: NDArray[np.uint8],
) -> dict[str, float]:
    """Largest absolute difference of each output, over (n, H, W, 3) uint8 BGR pictures."""
    # Channels last is several times faster on a CPU and computes the same. PyTorch's type hints
    # lack this form of its own method.
    unfolded = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        normalized = settings.normalize()(torch.from_numpy(pictures))
        heads = unfolded(normalized)
    feed = pictures if settings.takes_u8 else normalized.contiguous().numpy()
    outputs = [torch.from_numpy(array) for array in session.run(None, {INPUT_NAME: feed})]
    if settings.picks_peaks:
        return _peak_differences(outputs, heads)
    return {
        name: _difference(output, head)
        for name, output, head in zip(HEAD_NAMES, outputs, heads, strict=True)
    }


def _peak_differences(
    outputs: Sequence[torch.Tensor], heads: Sequence[torch.Tensor]
) -> dict[str, float]:
    """How far a graph's peaks are from the head maps of PyTorch.

    Cells are not compared with cells: rounding may swap two peaks of nearly the same score.
    """
    scores, cells, values = outputs
    hm = heads[0].flatten(1)
    others = torch.cat(tuple(heads[1:]), dim=1).flatten(2).transpose(1, 2)
    wanted = _PickPeaks(scores.shape[1], hm.shape[1])(tuple(heads))[0]
    is_peak = scores > 0
    at_cells = others.gather(1, cells.unsqueeze(2).expand(-1, -1, others.shape[2]))
    return {
        "scores": _difference(scores, wanted),
        "cells": _difference(scores[is_peak], hm.gather(1, cells)[is_peak]),
        "values": _difference(values[is_peak], at_cells[is_peak]),
    }


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max()) if a.numel() else 0.0


def _trace_to_onnx(graph: nn.Module, path: Path, settings: ExportSettings) -> None:
    own = settings.network_input
    example = (
        torch.zeros(1, own.height, own.width, 3, dtype=torch.uint8)
        if settings.takes_u8
        else torch.zeros(1, 3, own.height, own.width)
    )
    with _quiet():
        torch.onnx.export(
            graph.eval(),
            (example,),
            str(path),
            input_names=[INPUT_NAME],
            output_names=list(settings.outputs),
            dynamic_axes={name: {0: "batch"} for name in (INPUT_NAME, *settings.outputs)},
            opset_version=settings.opset,
            # The newer exporter writes opset 18 and above, which ATC of CANN 6 does not take.
            dynamo=False,
        )


def _checked(path: Path, settings: ExportSettings) -> onnx.ModelProto:
    """The exported model, through ONNX's own checker; a shape that it lacks is added."""
    model = onnx.load(str(path))
    if settings.picks_peaks:
        # The exporter leaves what TopK puts out unknown.
        for output in model.graph.output:
            output.type.tensor_type.shape.dim[1].dim_value = settings.top_k
        onnx.save(model, str(path))
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines: the exporter's are for its own developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _random_pictures(size: InputContract) -> NDArray[np.uint8]:
    """Two pictures, so that the batch axis is not the traced one."""
    shape = (2, size.height, size.width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _check_top_k(settings: ExportSettings) -> None:
    if settings.picks_peaks and not 1 <= settings.top_k <= settings.cells:
        own = settings.network_input
        raise UserError(
            f"model.top_k={settings.top_k}: a {own.width}x{own.height} input has {settings.cells} "
            f"output cells; choose 1 to {settings.cells}"
        )


def _check_differences(differences: dict[str, dict[str, float]], output: Path | str) -> None:
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

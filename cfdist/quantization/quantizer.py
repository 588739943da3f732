"""The int8 file: made by ONNX Runtime's quantiser, with a record of how beside it."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cfdist.backends.onnx_file import takes_u8
from cfdist.config import QuantizeConfig
from cfdist.errors import UserError
from cfdist.files import atomic_write, disk_as_user_error, resolved, sha256_of, write_text
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract, to_model_input
from cfdist.quantization.calibration import CalibrationSet
from cfdist.quantization.equalising import equalise
from cfdist.quantization.graph import QUANTISED, kept_operators, layers, load_float
from cfdist.quantization.rounding import round_weights
from cfdist.report.results import versions

# What the bytes of the file depend on.
_MAKERS = ("cfdist", "numpy", "opencv-python-headless", "onnx", "onnxruntime")
_SECONDS = 5.0  # between the lines on a calibration


@dataclass(frozen=True)
class Quantised:
    """An int8 file.

    Attributes:
        path: The file; its record is `<path>.json`.
        sha256: Its digest.
        bytes: Its size.
        layers: How many layers are int8.
        kept: The names of the operators in float32.
        made: Whether this call made it; if not, the same recipe had.
    """

    path: Path
    sha256: str
    bytes: int
    layers: int
    kept: Sequence[str]
    made: bool


def quantise(
    spec: ModelSpec,
    config: QuantizeConfig,
    pictures: CalibrationSet,
    path: Path,
    say: Callable[[str], None],
) -> Quantised:
    """Write an int8 copy of a float32 ONNX, unless the one that is there was made in the same way.

    Weights are symmetric, activations are bytes of 0 to 255 with a zero of their own, between
    QuantizeLinear and DequantizeLinear (QDQ). The file appears whole or not at all.

    Args:
        spec: The float32 model.
        config: How to quantise it.
        pictures: What the ranges of the activations are measured on.
        path: The file to write.
        say: Gets a line on what is done.

    Raises:
        UserError: not such an ONNX, no such operator, a picture that cannot be used, or a disk that
            does not take the file.
    """
    if resolved(path) == spec.path:
        raise UserError(f"quantize.output={path}: is the model itself; name another file")
    model = load_float(spec)
    kept = kept_operators(model, config.keep, spec)
    # Factors set a layer's weights further apart, which one scale for all of them rounds badly.
    is_equalised = config.equalise and config.per_channel
    recipe = {
        "onnx_sha256": spec.sha256,
        "input": [spec.height, spec.width],
        "calibration": {"pictures": pictures.count, "sha256": pictures.digest()},
        "method": config.method,
        "percentile": config.percentile if config.method == "percentile" else None,
        "per_channel": config.per_channel,
        "reduce_range": config.reduce_range,
        "equalise": is_equalised,
        "biases": "corrected",
        "kept": kept,
        "versions": {name: text for name, text in versions().items() if name in _MAKERS},
    }
    sidecar = path.with_name(path.name + ".json")
    is_made = _is_made(path, sidecar, recipe)
    if not is_made:
        started = time.monotonic()
        with disk_as_user_error(path):
            with atomic_write(path) as temporary:
                inputs = partial(_inputs, model, pictures, spec, say)
                if is_equalised:
                    equalise(model, kept, inputs("ranges of channels"))
                round_weights(model, config, kept, inputs("means of channels"))
                one_by_one = _OneByOne(inputs("ranges of tensors"), pictures.count)
                _write(model, config, kept, one_by_one, temporary)
            record = recipe | {
                "calibration_source": pictures.source,
                "int8_sha256": sha256_of(path),
            }
            write_text(sidecar, json.dumps(record, indent=2) + "\n")
        say(f"{path}: made in {time.monotonic() - started:.1f} s")
    else:
        say(f"{path}: up to date")
    count = sum(node.name not in kept for node in layers(model))
    return Quantised(path, sha256_of(path), path.stat().st_size, count, kept, not is_made)


def _is_made(path: Path, sidecar: Path, recipe: dict[str, Any]) -> bool:
    """Whether the file is there, whole, and made by the same recipe."""
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        same = all(record[key] == value for key, value in recipe.items())
        return same and bool(record["int8_sha256"] == sha256_of(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _inputs(
    model: onnx.ModelProto,
    pictures: CalibrationSet,
    spec: ModelSpec,
    say: Callable[[str], None],
    measured: str,
) -> Iterator[dict[str, NDArray[Any]]]:
    """The model's input for each picture; `measured` is what this pass is for."""
    told = time.monotonic()
    is_bytes = takes_u8(model)
    contract = InputContract(spec.height, spec.width, None) if is_bytes else spec.float_contract()
    for number, row in enumerate(pictures.letterboxed(spec)):
        if time.monotonic() - told > _SECONDS:
            told = time.monotonic()
            say(f"calibrating, {measured}: {number} of {pictures.count} pictures")
        yield {model.graph.input[0].name: np.array(to_model_input(row, contract))}


class _OneByOne:
    """Gives ONNX Runtime's calibrators a picture at a time: they keep what they were given."""

    def __init__(self, inputs: Iterator[dict[str, NDArray[Any]]], count: int) -> None:
        self._inputs = inputs
        self._count = count
        self._left = 0

    def __len__(self) -> int:
        return self._count

    def set_range(self, start_index: int, end_index: int) -> None:
        """The next pictures may be taken."""
        self._left = end_index - start_index

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next picture, if it may be taken."""
        if not self._left:
            return None
        self._left -= 1
        return next(self._inputs)


def _write(
    model: onnx.ModelProto,
    config: QuantizeConfig,
    kept: Sequence[str],
    inputs: _OneByOne,
    path: Path,
) -> None:
    """Measure the ranges of the activations, and write the int8 graph."""
    import onnxruntime.quantization as quantisation
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    methods = quantisation.CalibrationMethod
    method = {"minmax": methods.MinMax, "percentile": methods.Percentile}[config.method]
    add_pre_process_metadata(model)  # else it asks for what `load_float` has done
    with contextlib.redirect_stdout(io.StringIO()):  # its histograms tell of themselves
        quantisation.quantize_static(
            model,
            path,
            inputs,
            op_types_to_quantize=list(QUANTISED),
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            activation_type=quantisation.QuantType.QUInt8,
            weight_type=quantisation.QuantType.QInt8,
            nodes_to_exclude=list(kept),
            calibrate_method=method,
            # Each picture is counted and let go: the values of a whole network are 300 MB.
            extra_options={"CalibStridedMinMax": 1, "CalibPercentile": config.percentile},
        )

"""`job=export`: a checkpoint to an ONNX that is compared with PyTorch before it appears."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfdist import backends, execution, inputs
from cfdist.config import Config
from cfdist.errors import UserError
from cfdist.files import expanded, probe_file, resolved
from cfdist.model import ModelSpec
from cfdist.preprocess import PictureError, read_into
from cfdist.report import screen
from cfdist.report.results import Results, phase_seconds
from cfdist.storage import shown

REAL_PICTURES = 2  # of the data set, compared besides random ones


def main(config: Config, output: Path, started: float) -> int:
    """Export, compare, show; returns the exit code."""
    backends.resolve("torch")  # raises UserError if PyTorch is not installed
    spec = execution.model_spec(config.model, config.model.checkpoint, "model.checkpoint")
    target = expanded(config.export.output or output / "CenterFace.onnx")
    if resolved(target) == spec.path:
        raise UserError(f"export.output={target}: is the model itself; name another file")
    probe_file(target, "export.output")
    if config.export.peaks and spec.top_k is None:
        raise UserError(
            "model.top_k=null: a graph that picks peaks gives a fixed number of them; set "
            "model.top_k"
        )
    pictures = real_pictures(config, spec)
    from cfdist.backends.torch import load_spec_network  # PyTorch takes seconds
    from cfdist.network.export import export_onnx

    network = load_spec_network(spec)
    ready = time.time()
    report = export_onnx(
        network,
        target,
        spec.float_contract(),
        opset=config.export.opset,
        takes_u8=config.export.input == "u8",
        top_k=spec.top_k if config.export.peaks else None,
        pictures=pictures,
    )
    report["path"] = shown(target)
    results = Results(
        job="export",
        seconds=phase_seconds(started, ready, time.time()),
        model={"path": str(spec.path), "sha256": spec.sha256},
        config=config.model_dump(),
        extra={"export": report},
    )
    screen.print_export(report)
    screen.print_path(results.write(output))
    return results.exit_code


def real_pictures(config: Config, spec: ModelSpec) -> NDArray[np.uint8]:
    """The data set's first usable pictures, letterboxed: (n, H, W, 3) u8, BGR."""
    truth = inputs.find_ground_truth(config.dataset)
    rows: list[NDArray[np.uint8]] = []
    for item in inputs.find_pictures(config.dataset, truth).items:
        row = np.empty((spec.height, spec.width, 3), np.uint8)
        try:
            read_into(item.path, row)
        except PictureError:
            continue
        rows.append(row)
        if len(rows) == REAL_PICTURES:
            break
    if not rows:
        raise UserError(f"dataset={config.dataset.name}: none of its pictures can be read")
    return np.stack(rows)

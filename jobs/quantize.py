"""`job=quantize`: an int8 copy of a float32 ONNX, and at once what it costs and gains."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from cfdist import backends, execution, inputs
from cfdist.backends.model import BackendModel
from cfdist.config import Config, refuse_unused
from cfdist.distributed.events import event_notes
from cfdist.errors import UserError
from cfdist.files import expanded, probe_file
from cfdist.model import ModelSpec
from cfdist.model.formats import ONNX, format_of
from cfdist.quantization.calibration import find_calibration
from cfdist.quantization.quantizer import quantise
from cfdist.quantization.tables import print_trade, trade_parts
from cfdist.quantization.trade import measure_trade
from cfdist.report import screen
from cfdist.report.accuracy import how_tested
from cfdist.report.page.run import write_run_report
from cfdist.report.results import Results, damage_notes, phase_seconds
from cfdist.storage import shown


def main(config: Config, output: Path, started: float) -> int:
    """Quantise, compare, show; returns the exit code."""
    settings = config.quantize
    names = _runtimes(config)
    refuse_unused(config, names)
    spec = _onnx(config)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    pictures = find_calibration(settings.calibration, settings.pictures, manifest.items)
    path = expanded(settings.output or output / f"{spec.path.stem}_int8.onnx")
    probe_file(path, "quantize.output")
    floats = [BackendModel(name, spec, config.backend.model_dump()) for name in names]
    _check(floats)
    _say(f"calibrating with {pictures.count} pictures: {pictures.source}")
    made = quantise(spec, settings, pictures, path, _say)
    int8 = replace(spec, path=path.resolve(), sha256=made.sha256)
    pairs = [(model, replace(model, spec=int8)) for model in floats]
    _check(model for _, model in pairs)
    ready = time.time()
    trade = measure_trade(config, pairs, truth, manifest, output)
    ran = time.time()
    results = Results(
        job="quantize",
        test=how_tested(config),
        total=len(manifest.items),
        done=len(manifest.items) - len(trade.failures),
        failures=sorted(trade.failures.items()),
        damaged=sorted(trade.damaged.items()),
        seconds=phase_seconds(started, ready, ran),
        model={"path": str(spec.path), "sha256": spec.sha256},
        batch=spec.batch,
        config=config.model_dump(),
        notes=[*event_notes(trade.events), *damage_notes(config, trade.damaged)],
        events=trade.events,
        extra={
            "quantize": {
                **asdict(made),
                "path": shown(path),
                "calibration": {"source": pictures.source, "pictures": pictures.count},
                "runtimes": trade.runtimes,
            }
        },
    )
    print_trade(results)
    screen.print_remarks(results)
    screen.print_path(results.write(output))
    places = {item.id: item.path for item in manifest.pictures}
    write_run_report(results, output, None, lambda: trade_parts(results, trade.tallies, places))
    return results.exit_code


def _check(models: Iterable[BackendModel]) -> None:
    """Refuse models that their runtimes do not take, or not on the CPU.

    Raises:
        UserError: one of them.
    """
    for model in models:
        model.check()
        if model.kind != "cpu":
            raise UserError(
                f"backend.providers: job=quantize measures on the CPU, {model.backend} would take "
                f"a {model.kind}; leave backend.providers out"
            )


def _say(line: str) -> None:
    screen.console.inform(line)


def _runtimes(config: Config) -> list[str]:
    """The CPU runtimes to try the file on: the named one, or all that are installed.

    Raises:
        UserError: the backend is no CPU runtime that takes an ONNX.
    """
    name = config.backend.name
    if name == backends.AUTO:
        return backends.installed_cpu_runtimes()
    if name not in backends.CPU_RUNTIMES:
        raise UserError(
            f"backend={name}: the int8 file is for {' and '.join(backends.CPU_RUNTIMES)}; choose "
            f"one of them, or backend={backends.AUTO} for both"
        )
    return [backends.resolve(name)]


def _onnx(config: Config) -> ModelSpec:
    """The float32 ONNX.

    Raises:
        UserError: it is another file.
    """
    spec = execution.model_spec(config.model)
    found = format_of(spec.path)
    if found is not None and found is not ONNX:
        remedy = found.remedy if not found.backends else "give the ONNX that it was made from"
        if "torch" in found.backends:
            remedy = "make an ONNX of it first (job=export)"
        raise UserError(f"model {spec.path}: is {found.name}; {remedy}")
    return spec

"""What an int8 file costs and gains on each runtime: AP lost, pictures a second won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cfdist import execution
from cfdist.backends.choice import measure_in_child
from cfdist.backends.model import BackendModel
from cfdist.comparison.run import run_comparison
from cfdist.comparison.tally import Tally
from cfdist.config import Config
from cfdist.distributed.events import Event
from cfdist.errors import ExitCode, StoppedError
from cfdist.machine import available_cores
from cfdist.report import screen
from cfdist.report.progress import PictureProgress
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest

FORMS = ("float32", "int8")


@dataclass
class Trade:
    """What was measured.

    Attributes:
        runtimes: Runtime -> "ap" (form -> protocol -> difficulty -> AP), "ap_difference", "heads",
            "boxes" (as job=compare has them), "pictures_per_second" (form -> rate), "speedup".
        failures: Picture id -> why it failed.
        damaged: Picture id -> what is wrong with its file.
        events: What happened to devices and pictures.
        tallies: Runtime -> the pictures through both forms, float32 as the reference.
    """

    runtimes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)


def measure_trade(
    config: Config,
    pairs: Sequence[tuple[BackendModel, BackendModel]],
    truth: GroundTruth,
    manifest: Manifest,
    output: Path,
) -> Trade:
    """Measure the float32 and the int8 model of each runtime: their speeds, then their APs.

    The speeds are of the inference alone, of single pictures in all streams, in turns. They come
    first: nothing of Ray's runs yet.

    Raises:
        UserError: the machine's memory does not hold the models.
        StoppedError: a model could not be measured, or no device is left.
    """
    trade = Trade()
    screen.console.inform("measuring float32 and int8 in turns")
    rates = _rates(pairs)
    models = [model for pair in pairs for model in pair]
    with execution.start(config, models, streams=1, pictures=manifest.items) as there:
        screen.print_plan(config, there, manifest)
        for i in range(0, len(models), 2):
            pair = there.models[i : i + 2]
            tally = Tally(truth, config.eval.protocol)
            with PictureProgress(len(manifest.items), output) as progress:
                make_work = execution.device_work(config, there)
                trade.events += run_comparison(
                    replace(there, models=pair), manifest, make_work, tally, progress
                )
            summary = tally.summary(config.compare)
            speeds = {form: rates[f"{pair[0].backend} {form}"] for form in FORMS}
            trade.runtimes[pair[0].backend] = {
                "ap": {"float32": summary["reference"]["ap"], "int8": summary["candidate"]["ap"]},
                **{name: summary[name] for name in ("ap_difference", "heads", "boxes")},
                "pictures_per_second": speeds,
                "speedup": speeds["int8"] / speeds["float32"],
            }
            trade.tallies[pair[0].backend] = tally
            trade.failures |= tally.failures
            trade.damaged |= tally.damaged
    return trade


def _rates(pairs: Sequence[tuple[BackendModel, BackendModel]]) -> Mapping[str, float]:
    """Runtime and form, "openvino int8" -> pictures a second.

    Raises:
        StoppedError: a runtime failed.
    """
    models = {
        f"{model.backend} {form}": model
        for pair in pairs
        for form, model in zip(FORMS, pair, strict=True)
    }
    rates = {}
    for name, found in measure_in_child(models, available_cores()).items():
        if isinstance(found, str):
            raise StoppedError(f"{name}: {found}", ExitCode.INTERNAL)
        rates[name] = found
    return rates

"""From the results of a sweep's runs to figures that stand side by side."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import OmegaConf

from cfdist.backends.simulated import PUBLISHED_INPUT, PUBLISHED_RATES
from cfdist.config import CONFIG_FOLDER
from cfdist.report.results import device_time_rate, verdict
from cfdist.widerface.ground_truth import DIFFICULTIES

BATCH = "model.batch"

# Rates in pictures a second, by their names in `sweep.csv`.
STEADY = "steady_pictures_per_s"
END_TO_END = "end_to_end_pictures_per_s"
PURE_INFERENCE = "pure_inference_pictures_per_s"
HOST = "host_pictures_per_s"
# 1000 * batch / mean(NPU_compute_time): what ais_bench prints and the published table holds.
DEVICE_TIME = "device_time_pictures_per_s"
PUBLISHED = "published_images_per_s"
# From the first picture that was handed out to the last one that was finished; only plotted.
FIRST_TO_LAST = "first_to_last_pictures_per_s"

CHIP = "310P3"  # the chip of the published table
PUBLISHED_NOTE = (
    f"The published figures are those of the Ascend guide for CenterFace: one Ascend {CHIP}, CANN "
    "6.0.RC1, 800x800, pure inference (no picture is read or decoded in that time), APs by the "
    "guide's protocol (IoU 0.4) over the whole validation set, and other weights than "
    "`model=centerface` has: those of the PyTorch training code. They are a yardstick; no run of "
    "this sweep gave them."
)


@dataclass(frozen=True)
class RunSummary:
    """One run of a sweep that came to an end.

    Attributes:
        number: Its number in the sweep, from 0.
        overrides: Key -> value, as set for it.
        exit_code: What it ended with.
        reason: Why that is not 0, one line.
        simulated: No real model ran.
        resolved_backend: The resolved backend.
        protocol: The chosen protocol, by which its AP was computed.
        figures: Name in `sweep.csv`, or `FIRST_TO_LAST`, which is not there -> figure; only those
            that the run has, and the published ones that may stand beside them.
        notes: What a reader of its results should know.
    """

    number: int
    overrides: dict[str, str]
    exit_code: int
    reason: str | None
    simulated: bool = False
    resolved_backend: str | None = None
    protocol: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """How it ended, in a word."""
        if self.exit_code:
            return f"failed ({self.exit_code})"
        return "simulated" if self.simulated else "done"

    def settings(self, keys: Iterable[str]) -> list[str]:
        """`key=value` of those of the keys that were set for it."""
        return [f"{key}={self.overrides[key]}" for key in keys if key in self.overrides]


def summarise_run(
    number: int,
    overrides: dict[str, str],
    exit_code: int,
    reason: str | None,
    results: dict[str, Any] | None,
) -> RunSummary:
    """What the summary says of a run, by the content of its `results.json` if it has one.

    The other arguments are those of `RunSummary`. With results the reason is that of its verdict.
    """
    run = RunSummary(number, overrides, exit_code, reason)
    if results is None:
        return run
    model = results["config"]["model"]
    beside = published_beside(results["batch"], (model["height"], model["width"]))
    return replace(
        run,
        reason=verdict(results)[1],
        simulated=results["simulated"],
        resolved_backend=results["backend"],
        protocol=results["config"]["eval"]["protocol"],
        figures=_figures(results) | beside,
        notes=tuple(results["notes"]),
    )


def swept_keys(runs: Sequence[RunSummary]) -> list[str]:
    """The keys that set the runs apart, in the command line's order."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def have(runs: Sequence[RunSummary], name: str) -> bool:
    """Whether any of the runs has this figure."""
    return any(name in run.figures for run in runs)


def _figures(results: dict[str, Any]) -> dict[str, float]:
    rates, benchmark = results["throughput"] or {}, results.get("benchmark", {})
    # The devices of the whole run, whose rates stand beside; else those of the inference alone.
    looping = (benchmark.get("inference") or {}).get("devices", [])
    devices = results["devices"] or looping
    medians = [device["batch_ms"]["median"] for device in devices if device["batch_ms"]]
    busy = [device["busy_share"] for device in results["devices"]]
    pictures = sum(device["pictures"] for device in results["devices"])
    seconds = results["seconds"].get("run")
    host = [rate["pictures_per_second"] for rate in benchmark.get("host") or []]
    ap = results["ap"].get(results["config"]["eval"]["protocol"], {})
    figures = {
        "device_count": len(devices) or None,
        "batch": results["batch"],
        **{f"ap_{name}": value for name, value in ap.items()},
        STEADY: rates.get("steady"),
        END_TO_END: rates.get("end_to_end"),
        PURE_INFERENCE: rates.get("pure_inference"),
        DEVICE_TIME: device_time_rate(looping or results["devices"], results["batch"]),
        HOST: max(host, default=None),
        FIRST_TO_LAST: pictures / seconds if pictures and seconds else None,
        "median_batch_ms": statistics.median(medians) if medians else None,
        "busy_share": statistics.fmean(busy) if busy else None,
        "total_seconds": results["seconds"]["total"],
    }
    return {name: value for name, value in figures.items() if value is not None}


def published_beside(batch: int | None, size: tuple[int, int]) -> dict[str, float]:
    """The published figures that may stand beside a run, by their names in `sweep.csv`.

    Args:
        batch: The run's batch size.
        size: Rows and columns of its input; other sizes than the table's have no figures.
    """
    if size != PUBLISHED_INPUT or batch not in PUBLISHED_RATES[CHIP]:
        return {}
    ap = {f"published_ap_{name}": published_ap()[name] for name in DIFFICULTIES}
    return ap | {PUBLISHED: PUBLISHED_RATES[CHIP][batch]}


@functools.cache
def published_ap() -> Any:
    """The published AP: difficulty -> a fraction, the same at every batch size; and "protocol"."""
    return OmegaConf.load(CONFIG_FOLDER / "model" / "centerface_pytorch.yaml").expected

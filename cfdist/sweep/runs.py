"""From the results of a sweep's runs to figures that stand side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cfdist.report.results import verdict
from cfdist.sweep.published import published_table

BATCH = "model.batch"

# Rates in pictures a second, by their names in `sweep.csv`.
STEADY = "steady_pictures_per_s"
END_TO_END = "end_to_end_pictures_per_s"
PURE_INFERENCE = "pure_inference_pictures_per_s"
HOST = "host_pictures_per_s"


@dataclass(frozen=True)
class RunSummary:
    """One run of a sweep that came to an end.

    Attributes:
        number: Its number in the sweep, from 0.
        overrides: Key -> value, as set for it.
        exit_code: What it ended with.
        reason: Why that is not 0, one line.
        simulated: No real model ran.
        backend: The resolved backend.
        protocol: The chosen protocol, by which its AP was computed.
        first_to_last: Pictures a second from the first one handed out to the last one finished.
        figures: Name in `sweep.csv` -> figure; only those that the run has, and the published ones
            that may stand beside them.
        notes: What a reader of its results should know.
    """

    number: int
    overrides: dict[str, str]
    exit_code: int
    reason: str | None
    simulated: bool = False
    backend: str | None = None
    protocol: str | None = None
    first_to_last: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """How it ended, in a word."""
        if self.exit_code:
            return f"failed ({self.exit_code})"
        return "simulated" if self.simulated else "done"


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
    if results is None:
        return RunSummary(number, overrides, exit_code, reason)
    model = results["config"]["model"]
    beside = published_table().figures_beside(results["batch"], (model["height"], model["width"]))
    pictures = sum(device["pictures"] for device in results["devices"])
    seconds = results["seconds"].get("run")
    return RunSummary(
        number,
        overrides,
        exit_code,
        verdict(results)[1],
        simulated=results["simulated"],
        backend=results["backend"],
        protocol=results["config"]["eval"]["protocol"],
        first_to_last=pictures / seconds if pictures and seconds else None,
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
    devices = results["devices"] or (benchmark.get("inference") or {}).get("devices", [])
    medians = [device["batch_ms"]["median"] for device in devices if device["batch_ms"]]
    busy = [device["busy_share"] for device in results["devices"]]
    host = [rate["pictures_per_second"] for rate in benchmark.get("host") or []]
    ap = results["ap"].get(results["config"]["eval"]["protocol"], {})
    figures = {
        "device_count": len(devices) or None,
        "batch": results["batch"],
        **{f"ap_{name}": value for name, value in ap.items()},
        STEADY: rates.get("steady"),
        END_TO_END: rates.get("end_to_end"),
        PURE_INFERENCE: rates.get("pure_inference"),
        HOST: max(host, default=None),
        "median_batch_ms": statistics.median(medians) if medians else None,
        "busy_share": statistics.fmean(busy) if busy else None,
        "total_seconds": results["seconds"]["total"],
    }
    return {name: value for name, value in figures.items() if value is not None}

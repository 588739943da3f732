"""From the results of a sweep's runs to figures that stand side by side."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cfdist.backends.simulated import PUBLISHED_RATES
from cfdist.report.accuracy import is_like_published, published_ap
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
# How long a picture takes that is alone: name in `sweep.csv`, before "_ms" -> name in the results.
LATENCIES = {"p50": "median", "p90": "p90", "p99": "p99"}
# From the first picture that was handed out to the last one that was finished; only plotted.
FIRST_TO_LAST = "first_to_last_pictures_per_s"

# What the figures of a run hang on beside its settings: name in `sweep.csv` -> for people.
ORIGIN = {
    "data_set": "data set",
    "pictures": "pictures",
    "test": "test",
    "host": "host",
    "cpu": "processor",
    "date": "date",
    "commit": "commit",
}

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
        protocol: The chosen protocol, by which its AP was computed, with its quirks.
        origin: Data set, picture count, how they were tested, host, processor, date and commit,
            see `ORIGIN`; only what is known.
        figures: Name in `sweep.csv`, or `FIRST_TO_LAST`, which is not there -> figure; only those
            that the run has, and the published ones that may stand beside them.
        notes: What a reader of its results should know.
        folder: Its folder, in the sweep's; `None` if it has none.
    """

    number: int
    overrides: dict[str, str]
    exit_code: int
    reason: str | None
    simulated: bool = False
    resolved_backend: str | None = None
    protocol: str | None = None
    origin: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: Path | None = None

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
    beside = published_beside(results["batch"]) if is_like_published(results) else {}
    return replace(
        run,
        reason=verdict(results)[1],
        simulated=results["simulated"],
        resolved_backend=results["backend"],
        protocol=_protocol(results),
        origin=_origin(results),
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


def values_of(runs: Sequence[RunSummary], name: str) -> list[str]:
    """The different values that runs have of a name in `ORIGIN`, in their order."""
    return list(dict.fromkeys(run.origin[name] for run in runs if name in run.origin))


def test_lines(runs: Sequence[RunSummary]) -> list[str]:
    """How the pictures of runs with an AP were tested: one line, or one for each way."""
    ways = values_of(runs, "test")
    if len(ways) < 2:
        return [f"test: {way}" for way in ways]
    numbers = {
        way: [str(run.number) for run in runs if run.origin.get("test") == way] for way in ways
    }
    return [
        f"test of run{'s' if len(of) > 1 else ''} {', '.join(of)}: {way}"
        for way, of in numbers.items()
    ]


def origin_lines(runs: Sequence[RunSummary]) -> list[str]:
    """What runs were measured on, by the names in `ORIGIN` that are known."""
    lines = []
    for name, title in ORIGIN.items():
        values = values_of(runs, name)
        if name == "test":
            lines += test_lines(runs)
        elif name == "date" and len(values) > 1:
            lines.append(f"{title}: {min(values)} to {max(values)}")
        elif values:
            lines.append(f"{title}: {', '.join(values)}")
    return lines


def _figures(results: dict[str, Any]) -> dict[str, float]:
    rates, benchmark = results["throughput"] or {}, results.get("benchmark", {})
    # The devices of the whole run, whose rates stand beside; else those of the inference alone.
    looping = (benchmark.get("inference") or {}).get("devices", [])
    devices = results["devices"] or looping
    medians = [device["batch_ms"]["median"] for device in devices if device["batch_ms"]]
    busy = [device["busy_share"] for device in results["devices"]]
    host = [rate["pictures_per_second"] for rate in benchmark.get("host") or []]
    ap = results["ap"].get(_protocol(results), {})
    latency = (results.get("latency_ms") or {}).get("whole")
    figures = {
        "device_count": len(devices) or None,
        "batch": results["batch"],
        **{f"ap_{name}": value for name, value in ap.items()},
        STEADY: rates.get("steady"),
        END_TO_END: rates.get("end_to_end"),
        PURE_INFERENCE: rates.get("pure_inference"),
        DEVICE_TIME: device_time_rate(looping or results["devices"], results["batch"]),
        HOST: max(host, default=None),
        FIRST_TO_LAST: _first_to_last(results),
        "median_batch_ms": statistics.median(medians) if medians else None,
        **{f"{name}_ms": latency[one] for name, one in LATENCIES.items() if latency},
        "busy_share": statistics.fmean(busy) if busy else None,
        "total_seconds": results["seconds"]["total"],
    }
    return {name: value for name, value in figures.items() if value is not None}


def _protocol(results: dict[str, Any]) -> str:
    """The name of the AP that a run is about: that with its quirks, if it has one such."""
    chosen: str = results["config"]["eval"]["protocol"]
    with_quirks = [name for name in results["ap"] if name.startswith(f"{chosen} with ")]
    return with_quirks[0] if len(with_quirks) == 1 else chosen


def _first_to_last(results: dict[str, Any]) -> float | None:
    """Pictures a second of all devices in the run; `None` if all were one chunk."""
    pictures = sum(device["pictures"] for device in results["devices"])
    seconds = results["seconds"].get("run")
    first = (results.get("start_up_seconds") or {}).get("first_chunk")
    return pictures / seconds if pictures and seconds and first != seconds else None


def published_beside(batch: int | None) -> dict[str, float]:
    """The published figures of a batch size, by their names in `sweep.csv`; none for others."""
    if batch not in PUBLISHED_RATES[CHIP]:
        return {}
    ap = {f"published_ap_{name}": published_ap()[name] for name in DIFFICULTIES}
    return ap | {PUBLISHED: PUBLISHED_RATES[CHIP][batch]}


def _origin(results: dict[str, Any]) -> dict[str, str]:
    """What `ORIGIN` names, as text; runs of an earlier version know less."""
    known = dict(results.get("provenance") or {})
    known |= {"data_set": known.get("dataset"), "test": results.get("test")}
    if known.get("cpu") and known.get("cores"):
        known["cpu"] += f", {known['cores']} cores"
    return {name: str(known[name]) for name in ORIGIN if known.get(name) not in (None, "")}

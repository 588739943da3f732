"""`results.json`: what a run found, under keys that other programs can rely on."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

import cfdist
from cfdist import backends
from cfdist.config import Config
from cfdist.config.installation import CHECKOUT
from cfdist.devices.base import DeviceReport
from cfdist.distributed.events import Event
from cfdist.errors import ExitCode, UserError
from cfdist.files import REPORT, RESULTS, write_text
from cfdist.machine import available_cores, cpu_model
from cfdist.storage import shown, uri_of
from cfdist.widerface.ground_truth import DIFFICULTIES

SCHEMA_VERSION = 1

HISTOGRAM_BARS = 24

# The phases before the first picture of a run.
START_UP = ("imports", "checks", "ray", "devices")

# Distributions whose versions can change a figure.
_DISTRIBUTIONS = (
    "ray",
    "hydra-core",
    "numpy",
    "scipy",
    "opencv-python-headless",
    "openvino",
    "onnxruntime",
    "onnx",
    "pyarrow",
)


def versions() -> dict[str, str]:
    """Versions of what computed the figures; distributions that are not installed are left out."""
    found = {"python": platform.python_version(), "cfdist": cfdist.__version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """Where and when figures were computed.

    Returns:
        host, cpu and cores (of the machine on which the command ran), date (ISO 8601, local time
        with its offset) and commit (see `checkout_commit`).
    """
    return {
        "host": platform.node(),
        "cpu": cpu_model(),
        "cores": available_cores(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": checkout_commit(),
    }


def checkout_commit(checkout: Path | None = CHECKOUT) -> str | None:
    """The checkout's commit, with "-dirty" after it if its files differ; `None` without one.

    A copy that was unpacked inside another repository has none: that one's says nothing of it.
    """
    if checkout is None or not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=checkout, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or a repository that it refuses
    return found.stdout.strip() or None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The figures of one run; what a job does not have is `None` or empty.

    The fields are those of the file in the file's order, but for `total`, `done` and `extra`.

    Attributes:
        job: Name of its module in `jobs`.
        ap: Protocol -> difficulty -> average precision, a fraction; the chosen protocol first.
        test: How the pictures were tested, see `cfdist.report.accuracy.how_tested`; `None` where
            another program has found the boxes.
        total: Pictures asked for (job=infer: input tensors), each counted once in several passes.
        done: The pictures of `total` that did not fail.
        failures: (picture id, reason), each picture once.
        damaged: (picture id, what is wrong with the file), whether the picture failed or was used.
        throughput: "steady" and "end_to_end", pictures a second over all passes; job=benchmark also
            "pure_inference".
        seconds: "total", "start_up", "run" and "evaluation" -> seconds, `None` if a job has no such
            part; job=evaluate and job=benchmark also "shut_down", job=benchmark also
            "inference" and "host".
        devices: One entry for each device, see `device_entry`; its pictures are those of every
            pass.
        model: path and sha256.
        backend: The resolved backend.
        batch: Pictures a batch.
        simulated: No real model ran.
        fingerprint: Equal for runs that can continue each other, see `execution.run_identity`.
        passes: Number of passes over the data set.
        versions: Distribution -> version.
        provenance: Where and when the figures were computed, see `provenance`; in the file also
            the data set's name and the number of pictures that count.
        config: The resolved configuration.
        notes: What a reader should know, a sentence each.
        events: What happened to devices, nodes, the reducer and pictures, see
            `cfdist.distributed.events`.
        expected: What the AP should be, see `expected_ap`.
        extra: Sections that only one job has: name -> content.
    """

    job: str
    ap: dict[str, dict[str, float]] = field(default_factory=dict)
    test: str | None = None
    total: int = 0
    done: int = 0
    failures: Sequence[tuple[str, str]] = ()
    damaged: Sequence[tuple[str, str]] = ()
    throughput: dict[str, float | None] | None = None
    seconds: dict[str, float | None]
    devices: Sequence[dict[str, Any]] = ()
    model: dict[str, str] | None = None
    backend: str | None = None
    batch: int | None = None
    simulated: bool = False
    fingerprint: str | None = None
    passes: int | None = None
    versions: dict[str, str] = field(default_factory=versions)
    provenance: dict[str, Any] = field(default_factory=provenance)
    config: dict[str, Any]
    notes: Sequence[str] = ()
    events: Sequence[Event] = ()
    expected: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """What the process ends with, see `verdict`."""
        return verdict(self.to_dict())[0]

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "job": self.job, "ap": self.ap}
        content["pictures"] = {"total": self.total, "done": self.done, "failed": len(self.failures)}
        hidden = ("total", "done", "extra")
        content |= {name: value for name, value in vars(self).items() if name not in hidden}
        if self.total:
            dataset = self.config.get("dataset", {}).get("name")
            content["provenance"] = {"dataset": dataset, "pictures": self.done} | self.provenance
        for name in ("failures", "damaged"):
            content[name] = [{"picture": id, "reason": why} for id, why in getattr(self, name)]
        content["events"] = [asdict(event) for event in self.events]
        return content | self.extra

    def write(self, folder: Path) -> Path:
        """Write `results.json`, whole or not at all; a page of earlier results goes."""
        (folder / REPORT).unlink(missing_ok=True)
        path, text = folder / RESULTS, json.dumps(self.to_dict(), indent=2) + "\n"
        # Paths in a spool folder are the URI's by the time that somebody reads this.
        write_text(path, text.replace(str(folder), shown(folder)) if uri_of(folder) else text)
        return path


def verdict(content: dict[str, Any]) -> tuple[int, str | None]:
    """The exit code of a run with this content of `results.json`, and why it is not 0."""
    expected, comparison = content["expected"], content.get("comparison")
    if expected and not expected["met"] and content["config"]["eval"]["gate"]:
        return ExitCode.GATE_MISSED, "the AP misses model.expected"
    if comparison and not comparison["within_tolerance"]:
        return ExitCode.PAST_TOLERANCE, "the models are too far apart"
    if content["failures"]:
        first = content["failures"][0]
        return ExitCode.PICTURES_FAILED, (
            f"{len(content['failures'])} of {content['pictures']['total']} pictures failed; the "
            f"first, {first['picture']}: {first['reason']}"
        )
    return 0, None


def check_gate(config: Config) -> None:
    """Refuse a gate that no result can miss.

    Raises:
        UserError: `eval.gate` without an expected AP, on the sample set, or without a model.
    """
    if not config.eval.gate:
        return
    backends.refuse_simulated(config.backend.name, "eval.gate")
    if config.eval.quirks:
        raise UserError(
            "eval.gate: beside eval.quirks no AP is held against an expected one; leave one of "
            "the two keys out"
        )
    if not _wanted_ap(config):
        raise UserError(
            f"eval.gate: model={config.model.name} has no expected AP; give "
            "model.expected.easy=... (medium, hard)"
        )
    if config.dataset.kind == "sample":
        raise UserError("eval.gate: the sample set has no expected AP; use dataset=wider_val")


def expected_ap(config: Config, ap: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """The results' `expected` section: the expected APs, and whether the measured ones reach them.

    Args:
        config: With `model.expected`; a difficulty without an expected AP is left out.
        ap: Protocol -> difficulty -> measured AP, a fraction.

    Returns:
        protocol, ap (difficulty -> expected AP), tolerance and met; `None` if nothing is expected,
        as for the sample set, and where figures with quirks stand beside.
    """
    wanted, limits = _wanted_ap(config), config.model.expected
    if config.dataset.kind == "sample" or not wanted or config.eval.quirks:
        return None
    measured = ap[limits.protocol]
    met = all(measured[name] >= value - limits.tolerance for name, value in wanted.items())
    return {"protocol": limits.protocol, "ap": wanted, "tolerance": limits.tolerance, "met": met}


def _wanted_ap(config: Config) -> dict[str, float]:
    expected = config.model.expected.model_dump(include=set(DIFFICULTIES), exclude_none=True)
    return {name: expected[name] for name in DIFFICULTIES if name in expected}


def batch_statistics(batch_ms: Sequence[float]) -> dict[str, float] | None:
    """min, mean, median, p90, p99 and max of batch times in milliseconds; `None` for none."""
    if not batch_ms:
        return None
    times = np.asarray(batch_ms)
    return {
        "min": float(times.min()),
        "mean": float(times.mean()),
        "median": float(np.median(times)),
        "p90": float(np.percentile(times, 90)),
        "p99": float(np.percentile(times, 99)),
        "max": float(times.max()),
    }


def batch_histogram(batch_ms: Sequence[float]) -> dict[str, list[Any]] | None:
    """How many batches took how long: `edges_ms` of equal steps, and `counts` between them."""
    if not batch_ms:
        return None
    times = np.asarray(batch_ms)
    # The slowest few would leave the others one bar; the last bar holds all that are slower.
    counts, edges = np.histogram(np.minimum(times, np.percentile(times, 99)), HISTOGRAM_BARS)
    return {"edges_ms": [*edges.round(4).tolist()], "counts": counts.tolist()}


def device_entry(
    name: str, report: DeviceReport, run_seconds: float, started_at: float
) -> dict[str, Any]:
    """An entry of the results' `devices`, of what a device did in a run of `run_seconds`.

    The run began at `started_at`, seconds since the epoch. Its time counts from the first work
    handed out to the last work done. "chip" is the accelerator's number on its host, or its UUID,
    whatever the device's process calls it.
    """
    return {
        "name": name,
        "host": report.host,
        "chip": report.chip,
        "runs_on": report.runs_on or None,
        "pictures": report.pictures,
        "busy_share": min(1.0, report.busy_seconds / run_seconds) if run_seconds else 0.0,
        "batch_ms": batch_statistics(report.batch_ms),
        "device_ms": batch_statistics(report.device_ms),
        "batch_histogram": batch_histogram(report.batch_ms),
        "timeline": report.activity.to_dict(started_at),
    }


def device_time_rate(devices: Sequence[Mapping[str, Any]], batch: int | None) -> float | None:
    """Pictures a second by the devices' own time alone, as ais_bench counts them.

    That is 1000 * batch / mean(NPU_compute_time), summed over the devices: the figure of the
    published table. No copy to or from a chip is in it.

    Args:
        devices: Entries with `device_ms`, see `device_entry`.
        batch: Pictures a batch.

    Returns:
        `None` unless all devices measure their own time.
    """
    times = [(device.get("device_ms") or {"mean": 0.0})["mean"] for device in devices]
    if not batch or not times or not all(time > 0 for time in times):
        return None
    return float(sum(1000 * batch / time for time in times))


class Phases:
    """Consecutive phases of a run; each begins when the one before it ends.

    Attributes:
        seconds: Phase -> how long it took, in order.
    """

    def __init__(self, started: float) -> None:
        """Begin the first phase at `started`, seconds since the epoch."""
        self.seconds: dict[str, float] = {}
        self._since = started

    def end(self, name: str) -> None:
        """End a phase; the next one begins."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def phase_seconds(
    started: float, ready: float, ran: float, ended: float | None = None
) -> dict[str, float | None]:
    """The results' `seconds` from times on one clock.

    Args:
        started: The command's start.
        ready: When its work began.
        ran: When its work ended.
        ended: When the evaluation after it ended; `None` where there is none.
    """
    return {
        "total": (ran if ended is None else ended) - started,
        "start_up": ready - started,
        "run": ran - ready,
        "evaluation": None if ended is None else ended - ran,
    }


def chosen_first(ap: dict[str, dict[str, float]], protocol: str) -> dict[str, dict[str, float]]:
    """The APs with the chosen protocol's first."""
    return {name: ap[name] for name in sorted(ap, key=lambda name: name != protocol)}


def damage_notes(config: Config, damaged: Sized) -> list[str]:
    """A note that files of pictures are damaged, and what has become of these pictures."""
    if not damaged:
        return []
    many = len(damaged) > 1
    start = f"{len(damaged)} {'pictures have' if many else 'picture has'} a damaged file and"
    listed = "see damaged in results.json"
    if config.dataset.damaged == "use":
        used = "are used as they decode" if many else "is used as it decodes"
        return [f"{start} {used} (dataset.damaged=use), {listed}"]
    return [f"{start} failed, {listed}; dataset.damaged=use takes what decodes"]

"""`results.json`: what a run found, under keys that are a promise to other programs."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import cfdist
from cfdist.devices.base import DeviceReport
from cfdist.errors import ExitCode
from cfdist.files import RESULTS, write_text

SCHEMA_VERSION = 1

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


@dataclass(frozen=True)
class Results:
    """The figures of one run; what a job does not have is `None` or empty.

    Attributes:
        job: Name of its module in `jobs`.
        ap: Protocol -> difficulty -> average precision, a fraction; the chosen protocol first.
        total: Pictures asked for (job=infer: input tensors), each once whatever the passes.
        done: Those of them that did not fail.
        failures: (picture id, reason), each picture once.
        seconds: "total", "start_up", "run" and "evaluation" -> seconds, `None` if a job has no such
            part; job=evaluate and job=benchmark also "shut_down", job=benchmark also
            "inference" and "host".
        config: The resolved configuration.
        throughput: "steady" and "end_to_end", pictures a second, those of every pass;
            job=benchmark also "pure_inference".
        devices: One entry a device: name, pictures (those of every pass), busy_share, batch_ms,
            device_ms.
        model: path and sha256.
        backend: The resolved backend.
        batch: Pictures a batch.
        simulated: No real model ran.
        fingerprint: Equal for runs that can continue each other, see `execution.run_identity`.
        passes: Over the data set.
        notes: What a reader should know, a sentence each.
        expected: What the AP should be: protocol, ap by difficulty, tolerance, met.
        extra: Sections that only one job has: name -> content.
    """

    job: str
    ap: dict[str, dict[str, float]]
    total: int
    done: int
    failures: Sequence[tuple[str, str]]
    seconds: dict[str, float | None]
    config: dict[str, Any]
    throughput: dict[str, float | None] | None = None
    devices: Sequence[dict[str, Any]] = field(default_factory=list)
    model: dict[str, str] | None = None
    backend: str | None = None
    batch: int | None = None
    simulated: bool = False
    fingerprint: str | None = None
    passes: int | None = None
    notes: Sequence[str] = field(default_factory=list)
    expected: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """What the process ends with, see `verdict`."""
        return verdict(self.to_dict())[0]

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "schema_version": SCHEMA_VERSION,
            "job": self.job,
            "ap": self.ap,
            "pictures": {"total": self.total, "done": self.done, "failed": len(self.failures)},
            "failures": [{"picture": id, "reason": reason} for id, reason in self.failures],
            "throughput": self.throughput,
            "seconds": self.seconds,
            "devices": list(self.devices),
            "model": self.model,
            "backend": self.backend,
            "batch": self.batch,
            "simulated": self.simulated,
            "fingerprint": self.fingerprint,
            "passes": self.passes,
            "versions": versions(),
            "config": self.config,
            "notes": list(self.notes),
            "expected": self.expected,
            **self.extra,
        }

    def write(self, folder: Path) -> Path:
        """Write `results.json`, whole or not at all."""
        path = folder / RESULTS
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")
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


def versions() -> dict[str, str]:
    """Versions of what computed the figures; distributions that are not installed are left out."""
    found = {"python": platform.python_version(), "cfdist": cfdist.__version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def batch_statistics(batch_ms: Sequence[float]) -> dict[str, float] | None:
    """min, mean, median, p99 and max of batch times in milliseconds; `None` for none."""
    if not batch_ms:
        return None
    times = np.asarray(batch_ms)
    return {
        "min": float(times.min()),
        "mean": float(times.mean()),
        "median": float(np.median(times)),
        "p99": float(np.percentile(times, 99)),
        "max": float(times.max()),
    }


def device_entry(name: str, report: DeviceReport, run_seconds: float) -> dict[str, Any]:
    """An entry of the results' `devices`.

    Args:
        name: The device's name.
        report: What the device did.
        run_seconds: How long the run took, from the first work handed out to the last one done.
    """
    return {
        "name": name,
        "pictures": report.pictures,
        "busy_share": min(1.0, report.busy_seconds / run_seconds) if run_seconds else 0.0,
        "batch_ms": batch_statistics(report.batch_ms),
        "device_ms": batch_statistics(report.device_ms),
    }


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

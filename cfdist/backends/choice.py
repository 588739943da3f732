"""Which CPU runtime is faster on this machine: measured once, then remembered.

On one processor OpenVINO ran the authors' network 1.4 times as fast as ONNX Runtime, on another
0.88 times: no order holds everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import cfdist
from cfdist import backends
from cfdist.backends.base import Backend, DeviceSettings
from cfdist.errors import UserError
from cfdist.files import write_text
from cfdist.machine import available_cores, available_memory
from cfdist.model import ModelSpec
from cfdist.preprocess import to_model_input

# Each runtime has its turn in every round, so that what else the machine does hits them alike.
ROUNDS = 3
TURN_SECONDS = 0.6
# The slowest machine's imports, loading and turns; later, something hangs.
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Choice:
    """A CPU runtime, and why it was chosen.

    Attributes:
        name: The backend.
        rates: Pictures a second of each runtime; empty if nothing was measured.
        is_remembered: The rates are those of an earlier command.
        failures: Why a runtime cannot run the model, name -> reason.
    """

    name: str
    rates: Mapping[str, float] = field(default_factory=dict)
    is_remembered: bool = False
    failures: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for a person."""
        if self.failures:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())
            return f"{self.name}, for another CPU runtime failed ({reasons})"
        if not self.rates:
            return f"{self.name}, the only CPU runtime installed"
        others = "".join(
            f", {name} {rate:.3g}" for name, rate in self.rates.items() if name != self.name
        )
        when = "remembered" if self.is_remembered else "measured now"
        return (
            f"{self.name}, the faster CPU runtime here "
            f"({self.rates[self.name]:.3g} pictures/s{others}; {when})"
        )


@dataclass(frozen=True)
class Measurement:
    """What a trial of the runtimes gave.

    Attributes:
        rates: Pictures a second of each that ran.
        failures: Why the others did not, name -> reason.
    """

    rates: Mapping[str, float]
    failures: Mapping[str, str]


def choose_cpu_backend(
    spec: ModelSpec, options: Mapping[str, Any], threads: int, cache: Path | None = None
) -> Choice:
    """The faster CPU runtime for a model here, measured in at most about 6 seconds if need be.

    Args:
        spec: The model; it is measured with a batch of one picture.
        options: The backend's settings, `streams` among them.
        threads: CPU threads of a device.
        cache: Where choices are remembered; `None`: `cfdist` in the user's cache folder. A folder
            or file that cannot be read or written means that the next command measures again.

    Raises:
        UserError: no CPU runtime is installed, or none takes the model.
    """
    names = backends.installed_cpu_runtimes()
    if len(names) == 1:
        return Choice(names[0])
    identity = _identity(spec, options, threads, names)
    path = _cache_file(identity, cache)
    rates = _remembered(path, identity)
    if rates:
        return Choice(_fastest(rates), rates, is_remembered=True)
    found = measure_in_child(names, spec, options, threads)
    if not found.rates:
        raise UserError(_no_runtime(found.failures, spec))
    if not found.failures:
        _remember(path, identity, found.rates)
    return Choice(_fastest(found.rates), found.rates, failures=found.failures)


def measure_in_child(
    names: list[str], spec: ModelSpec, options: Mapping[str, Any], threads: int
) -> Measurement:
    """`measure_models` in a process of its own, which takes its threads and its memory with it.

    If that process dies, each runtime gets one of its own, which says which of them it was.
    """
    # Where this package lies, for a child that may begin in any folder.
    folders = [str(Path(cfdist.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cfdist.backends.choice"],
            input=pickle.dumps((names, spec, dict(options), threads)),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))},
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
        result = json.loads(done.stdout.splitlines()[-1])
        return Measurement(result["rates"], result["failures"])
    except subprocess.TimeoutExpired:
        reason = f"the measurement took longer than {TIMEOUT_SECONDS:.0f} s"
    except (IndexError, ValueError, KeyError):
        reason = f"the measurement ended with exit code {done.returncode}"
    if len(names) == 1:
        return Measurement({}, {names[0]: reason})
    alone = [measure_in_child([name], spec, options, threads) for name in names]
    return Measurement(
        {name: rate for one in alone for name, rate in one.rates.items()},
        {name: why for one in alone for name, why in one.failures.items()},
    )


def measure_models(
    names: list[str], spec: ModelSpec, options: Mapping[str, Any], threads: int
) -> Measurement:
    """Load a model with each runtime, in the shape in which a run would, and measure them."""
    one = replace(spec, batch=1)
    loaded: dict[str, Backend] = {}
    failures: dict[str, str] = {}
    for name in names:
        try:
            backend_class = backends.backend_class(name)
            kind = backend_class.device_kind(options)
            if kind != "cpu":
                raise UserError(f"its options ask for a {kind}")
            streams = _streams(one, backend_class, options, threads)
            loaded[name] = backend_class(one, DeviceSettings(threads, streams, 0, options))
        except Exception as error:  # runtimes have errors of their own
            failures[name] = " ".join(str(error).split())[:300] or type(error).__name__
    return Measurement(measure(loaded), failures)


def measure(
    loaded: Mapping[str, Backend],
    turn_seconds: float = TURN_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Pictures a second of loaded models, all streams busy; the median of `ROUNDS` turns each."""
    rates: dict[str, list[float]] = {name: [] for name in loaded}
    for turn in range(ROUNDS + 1):
        for name, backend in loaded.items():
            # The first inference of a stream takes its memory: that turn does not count.
            rate = _rate(backend, turn_seconds if turn else 0.0, clock)
            if turn:
                rates[name].append(rate)
    return {name: median(each) for name, each in rates.items()}


def _rate(backend: Backend, seconds: float, clock: Callable[[], float]) -> float:
    """Pictures a second of all streams together; each infers at least once."""
    shape = (1, backend.contract.height, backend.contract.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    inputs = to_model_input(noise, backend.contract)

    def run_stream(_: int) -> float:
        start, count = clock(), 0
        while count == 0 or clock() - start < seconds:
            backend.infer(inputs)
            count += 1
        return count / max(clock() - start, 1e-9)

    with ThreadPoolExecutor(backend.streams) as pool:
        return sum(pool.map(run_stream, range(backend.streams)))


def _streams(
    spec: ModelSpec, backend: type[Backend], options: Mapping[str, Any], threads: int
) -> int:
    """As many as asked for, or as threads and half of the free memory allow."""
    asked = options.get("streams", "auto")
    if asked != "auto":
        return int(asked)
    one = spec.height * spec.width * backend.capabilities.activation_bytes_per_pixel
    return max(1, min(threads, available_memory() // 2 // one))


def _fastest(rates: Mapping[str, float]) -> str:
    """The first of the fastest."""
    return max(rates, key=lambda name: rates[name])


def _no_runtime(failures: Mapping[str, str], spec: ModelSpec) -> str:
    """The reason that all give, or each one's."""
    if len(set(failures.values())) == 1:
        return next(iter(failures.values()))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
    return f"model {spec.path}: no CPU runtime takes it ({reasons}); give another model file"


def _identity(
    spec: ModelSpec, options: Mapping[str, Any], threads: int, names: list[str]
) -> dict[str, Any]:
    """All that a measurement depends on, as JSON holds it."""
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "threads": threads,
        "versions": {"cfdist": cfdist.__version__} | {name: _version(name) for name in names},
        "model": spec.sha256,
        "input": [spec.height, spec.width],
        "options": {
            key: options.get(key) for key in ("streams", "precision", "providers") if key in options
        },
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    # Distributions of other names hold it too, such as onnxruntime-gpu. Looking takes seconds.
    distributions = metadata.packages_distributions().get(package, [])
    return ", ".join(f"{name} {metadata.version(name)}" for name in distributions)


def _cache_file(identity: Mapping[str, Any], cache: Path | None) -> Path | None:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    if cache is None:
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfdist"
        except RuntimeError:  # nobody's home
            return None
    return cache / f"cpu_backend_{digest[:16]}.json"


def _remembered(path: Path | None, identity: Mapping[str, Any]) -> dict[str, float]:
    """The rates of an earlier measurement; empty if there is none that can be used."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8")) if path else {}
        rates = {str(name): float(rate) for name, rate in entry["rates"].items()}
        usable = entry["identity"] == identity and set(rates) <= set(backends.CPU_RUNTIMES)
        is_finite = all(0 < rate < math.inf for rate in rates.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return rates if usable and is_finite and len(rates) > 1 else {}


def _remember(path: Path | None, identity: Mapping[str, Any], rates: Mapping[str, float]) -> None:
    with contextlib.suppress(OSError):
        if path:
            write_text(path, json.dumps({"identity": identity, "rates": dict(rates)}, indent=2))


if __name__ == "__main__":
    measured = measure_models(*pickle.load(sys.stdin.buffer))
    print("\n" + json.dumps({"rates": measured.rates, "failures": measured.failures}))

"""Which CPU runtime is faster on this machine: measured once, then remembered.

On one processor OpenVINO ran the authors' network 1.4 times as fast as ONNX Runtime, on another
0.88 times: no order holds everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import cfdist
from cfdist import backends
from cfdist.backends import child
from cfdist.backends.base import Backend, DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.errors import UserError
from cfdist.files import user_cache, write_text
from cfdist.machine import available_cores, available_memory, cpu_model
from cfdist.model import ModelSpec
from cfdist.model.formats import refuse_other_format
from cfdist.monitoring.terminal import show_waiting
from cfdist.preprocess import to_model_input

# Every round measures each runtime, so that what else the machine does slows them alike.
ROUNDS = 3
SECONDS = 0.6  # of a runtime in a round

# Pictures a second of each runtime, or why it cannot run the model.
Measurement = dict[str, float | str]


def choose_cpu_backend(spec: ModelSpec, options: Mapping[str, Any], threads: int) -> BackendModel:
    """A model on the faster CPU runtime here, measured in at most about 6 seconds if need be.

    Rates are remembered in the folder `cfdist` of the user's cache folder. If that cannot be read
    or written, the next command measures again.

    Args:
        spec: The model; it is measured with a batch of one picture.
        options: The backend's settings, `streams` among them.
        threads: CPU threads of a device.

    Raises:
        UserError: no CPU runtime is installed, or none takes the model.
    """
    names = backends.installed_cpu_runtimes()
    refuse_other_format(spec.path, names, f"backend={backends.AUTO}")
    if len(names) == 1:
        remark = f"{names[0]}, the only CPU runtime installed{_why_others_are_missing(names)}"
        model = BackendModel(names[0], spec, options, remark)
        model.check()
        return model
    identity = _identity(spec, options, threads, names)
    remembered = _remembered(identity)
    if not remembered:
        show_waiting(f"measuring which CPU runtime is the fastest here ({', '.join(names)})")
    models = {name: BackendModel(name, spec, options) for name in names}
    measured = remembered or measure_in_child(models, threads)
    rates = {name: found for name, found in measured.items() if not isinstance(found, str)}
    reasons = {name: found for name, found in measured.items() if isinstance(found, str)}
    failures = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    if not rates:
        if len(set(reasons.values())) == 1:
            raise UserError(reasons[names[0]])
        raise UserError(
            f"model {spec.path}: no CPU runtime takes it ({failures}); give another model file"
        )
    best = max(rates, key=rates.__getitem__)
    if failures:
        remark = f"{best}, for another CPU runtime failed ({failures})"
        return BackendModel(best, spec, options, remark)
    if not remembered:
        _remember(identity, rates)
    others = "".join(f", {name} {rate:.3g}" for name, rate in rates.items() if name != best)
    when = "remembered" if remembered else "measured now"
    remark = f"{best}, the faster CPU runtime here ({rates[best]:.3g} pictures/s{others}; {when})"
    return BackendModel(best, spec, options, remark)


def _why_others_are_missing(installed: list[str]) -> str:
    """What a person can do about the CPU runtimes that are not installed; in parentheses."""
    missing = [name for name in backends.CPU_RUNTIMES if name not in installed]
    if missing == ["openvino"] and platform.machine() == "aarch64":
        # requirements.txt leaves it out there.
        library = " ".join(platform.libc_ver()) or "another C library"
        return (
            f" (openvino is not: its aarch64 wheels need glibc 2.35 or newer, here is {library}; "
            "where that is there, `pip install -r requirements-openvino.txt`)"
        )
    return f" ({' and '.join(missing)} is not: `pip install -r requirements.txt`)"


def measure_in_child(models: Mapping[str, BackendModel], threads: int) -> Measurement:
    """`measure_models` in a process of its own, which takes its threads and its memory with it.

    If that process dies, each model gets one of its own, which says which of them it was.
    """
    try:
        measured: Measurement = child.call("cfdist.backends.choice", dict(models), threads)
        return measured
    except child.ChildError as error:
        if len(models) == 1:
            return dict.fromkeys(models, f"the measurement {error}")
    alone = [measure_in_child({name: model}, threads) for name, model in models.items()]
    return {name: found for one in alone for name, found in one.items()}


def measure_models(models: Mapping[str, BackendModel], threads: int) -> Measurement:
    """Load models, in the shape in which a run would, and measure them; by the same names."""
    loaded: dict[str, Backend] = {}
    failures: dict[str, str] = {}
    for name, model in models.items():
        try:
            if model.kind != "cpu":
                raise UserError(f"its options ask for a {model.kind}")
            one = replace(model.spec, batch=1)
            streams = _streams(one, model.backend_class, model.options, threads)
            loaded[name] = model.backend_class(
                one, DeviceSettings(threads, streams, 0, model.options)
            )
        except Exception as error:  # runtimes have errors of their own
            failures[name] = " ".join(str(error).split())[:300] or type(error).__name__
    return failures | measure(loaded)


def measure(loaded: Mapping[str, Backend]) -> dict[str, float]:
    """Pictures a second of loaded models, all streams busy: the median of `ROUNDS` rounds."""
    for backend in loaded.values():
        _rate(backend, 0.0)  # the first inference of a stream takes its memory
    rounds = [
        {name: _rate(backend, SECONDS) for name, backend in loaded.items()} for _ in range(ROUNDS)
    ]
    return {name: median(rates[name] for rates in rounds) for name in loaded}


def _rate(backend: Backend, seconds: float) -> float:
    """Pictures a second of all streams together; each infers at least once."""
    shape = (1, backend.contract.height, backend.contract.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    inputs = to_model_input(noise, backend.contract)

    def run_stream(_: int) -> float:
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < seconds:
            backend.infer(inputs)
            count += 1
        return count / max(time.perf_counter() - start, 1e-9)

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


def _identity(
    spec: ModelSpec, options: Mapping[str, Any], threads: int, names: list[str]
) -> dict[str, Any]:
    """All that a measurement depends on, as JSON holds it."""
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "threads": threads,
        "versions": {"cfdist": cfdist.__version__} | {name: _version(name) for name in names},
        "model": spec.sha256,
        "input": [spec.height, spec.width],
        "options": dict(options),
    }


def _version(package: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    # Distributions of other names hold it too, such as onnxruntime-gpu. Looking takes seconds.
    distributions = metadata.packages_distributions().get(package, [])
    return ", ".join(f"{name} {metadata.version(name)}" for name in distributions)


def _cache_file(identity: Mapping[str, Any]) -> Path:
    """The file of a measurement.

    Raises:
        UserError: the user has no cache that nobody else can write to.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return user_cache() / f"cpu_backend_{digest[:16]}.json"


def _remembered(identity: Mapping[str, Any]) -> Measurement:
    """The rates of an earlier measurement; empty if there is none that can be used."""
    with contextlib.suppress(OSError, UserError, ValueError, KeyError, TypeError):
        entry = json.loads(_cache_file(identity).read_text(encoding="utf-8"))
        rates: Measurement = entry["rates"]
        is_usable = set(rates) == set(backends.CPU_RUNTIMES) and entry["identity"] == identity
        if is_usable and all(0 < float(rate) < math.inf for rate in rates.values()):
            return rates
    return {}


def _remember(identity: Mapping[str, Any], rates: Mapping[str, float]) -> None:
    with contextlib.suppress(OSError, UserError):
        entry = {"identity": identity, "rates": rates}
        write_text(_cache_file(identity), json.dumps(entry, indent=2))


if __name__ == "__main__":
    child.answer(measure_models)

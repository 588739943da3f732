"""What job=tune tries: the settings that a person has left open, those that this machine has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfdist import backends, execution
from cfdist.ascend.npu_smi import list_npus
from cfdist.backends.model import BackendModel
from cfdist.config import Config, refuse_unused
from cfdist.distributed.accelerators import count_accelerators
from cfdist.errors import UserError, counted
from cfdist.extensions import is_own_code
from cfdist.machine import available_cores
from cfdist.model import locate_model
from cfdist.model.formats import format_of

FILES = "tune.models"


@dataclass(frozen=True)
class Variant:
    """What decides a model's numbers; its speed depends on streams and batch as well.

    Attributes:
        backend: A resolved backend's name.
        options: Keys of `backend` with their values, as JSON, so that it can be a key of a dict.
        file: Another file than the configured model; `None`: that one.
    """

    backend: str
    options: str = "{}"
    file: str | None = None

    def __str__(self) -> str:
        """As tables call it: "openvino bf16"."""
        words = [self.backend]
        for value in json.loads(self.options).values():
            words.append(str(value[0] if isinstance(value, list) else value))
        return " ".join(words + ([self.file] if self.file else []))

    def settings(self) -> dict[str, Any]:
        """Key -> value, as a preset has them."""
        found = {f"backend.{key}": value for key, value in json.loads(self.options).items()}
        return found | ({"model.path": self.file} if self.file else {})

    def configured(self, config: Config, streams: int | None = None, batch: int = 1) -> Config:
        """The configuration of a run of it, with these streams (`None`: as configured).

        Only on a GPU a device may have a part of one.

        Raises:
            UserError: the backend cannot be imported.
        """
        options = {"name": self.backend} | json.loads(self.options)
        if streams is not None:
            options["streams"] = streams
        backend = config.backend.model_copy(update=options)
        if backend.gpus_per_device != 1:
            kind = backends.backend_class(self.backend).device_kind(backend.model_dump())
            backend.gpus_per_device = backend.gpus_per_device if kind == "gpu" else 1.0
        return config.model_copy(
            update={
                "backend": backend,
                "model": config.model.model_copy(update={"batch": batch}),
            }
        )

    def model(self, config: Config) -> BackendModel:
        """The model of a configuration that `configured` has made.

        Raises:
            UserError: the backend cannot run it.
        """
        return execution.model_on_backend(config, self.backend, self.file, FILES)


@dataclass(frozen=True)
class Candidate:
    """Settings to try; `streams` is `None` for a backend that has none."""

    variant: Variant
    streams: int | None
    batch: int

    def __str__(self) -> str:
        """As messages call it: "openvino bf16, 2 streams, batch 4"."""
        words = [str(self.variant), f"batch {self.batch}"]
        if self.streams is not None:
            words.insert(1, counted(self.streams, "stream"))
        return ", ".join(words)

    def settings(self) -> dict[str, Any]:
        """Key -> value, as a preset has them."""
        streams = {} if self.streams is None else {"backend.streams": self.streams}
        return self.variant.settings() | streams | {"model.batch": self.batch}

    def configured(self, config: Config) -> Config:
        """The configuration of a run with these settings."""
        return self.variant.configured(config, self.streams, self.batch)


def reference_of(config: Config) -> Variant:
    """What the numbers are held against: the model in float32 on a CPU.

    Raises:
        UserError: no backend here runs it so.
    """
    if config.backend.name == backends.SIMULATED:
        return Variant(backends.SIMULATED)
    refusals = []
    file = config.tune.reference
    of_checkpoint = config.model.checkpoint and not file
    if not file and not of_checkpoint:
        execution.model_spec(config.model)  # a missing file is no backend's refusal
    for name in ("torch",) if of_checkpoint else (*backends.CPU_RUNTIMES, "torch"):
        one = Variant(name, json.dumps(_IN_FLOAT32[name]), file)
        try:
            one.model(one.configured(config))
            return one
        except UserError as error:
            refusals.append(str(error))
    raise UserError(
        "job=tune: no CPU backend here runs the model, to hold the others against; name a file "
        f"that one runs, tune.reference=FILE ({refusals[0]})"
    )


_IN_FLOAT32: dict[str, dict[str, Any]] = {
    "openvino": {"precision": "f32"},
    "onnxruntime": {"providers": ["CPUExecutionProvider"]},
    "torch": {"device": "cpu", "precision": "f32"},
}


def find_candidates(config: Config) -> tuple[list[Candidate], dict[str, str]]:
    """All combinations of what the person has not typed, and why others are left out.

    Raises:
        UserError: there is none, or a further file is not there or no model.
    """
    for file in config.tune.models:
        path = locate_model(file.replace("{batch}", str(_batches(config)[0])), FILES)
        if not is_own_code(config.backend.name):  # which knows its own formats
            _refuse_no_model(file, path)
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    for variant in _variants(config):
        reason = ""
        for batch in _batches(config):
            try:
                of_batch = variant.configured(config, batch=batch)
                refuse_unused(of_batch, [variant.backend])
                kind = variant.model(of_batch).kind
            except UserError as error:  # a file for some batches only is no reason against others
                reason = reason or str(error)
                continue
            streams = _streams(config, variant.backend, kind)
            found += [Candidate(variant, count, batch) for count in streams]
        if reason and not any(one.variant == variant for one in found):
            left_out[str(variant)] = reason
    if not found:
        raise UserError(f"job=tune: nothing to try: {next(iter(left_out.values()))}")
    return found, left_out


def _refuse_no_model(file: str, path: Path) -> None:
    """Refuse a further file that nothing runs: the search would only say so at its end."""
    found = format_of(path)
    if found is None:
        raise UserError(f"{FILES}={file}: is no ONNX, OM or checkpoint; give a model file")
    if not found.backends:
        raise UserError(f"{FILES}={file}: is {found.name}; {found.remedy}")


def _variants(config: Config) -> Iterator[Variant]:
    for name in _backend_names(config):
        for options in _options(config, name):
            for file in (None, *config.tune.models):
                yield Variant(name, json.dumps(options), file)


def _backend_names(config: Config) -> list[str]:
    """The one that was named, or all that are installed here and have their devices."""
    if config.backend.name != backends.AUTO:
        return [backends.resolve(config.backend.name)]
    if config.model.checkpoint:
        return ["torch"]
    names = [name for name in backends.BACKENDS if backends.is_installed(name)]
    return [one for one in names if one != backends.SIMULATED and (one != "om" or list_npus())]


def _options(config: Config, name: str) -> list[dict[str, Any]]:
    """The settings of a backend that change numbers: each that was not typed, with each value."""
    typed = config.typed()
    if name == "openvino" and "backend.precision" not in typed:
        return [{"precision": "f32"}, {"precision": "bf16"}]
    on_gpu = name == "torch" and config.backend.device != "cpu" and count_accelerators("gpu")
    if on_gpu and "backend.precision" not in typed:
        return [{"precision": one} for one in ("f32", "f16", "bf16")]
    if name == "onnxruntime" and "backend.providers" not in typed:
        from cfdist.backends.onnxruntime import accelerating_providers
        from cfdist.backends.provider_options import CPU_PROVIDER

        there = accelerating_providers().items()
        chosen = [[], *([name] for name, kind in there if count_accelerators(kind))]
        return [{"providers": [*names, CPU_PROVIDER]} for names in chosen]
    return [{}]


def _batches(config: Config) -> list[int]:
    return [config.model.batch] if "model.batch" in config.typed() else config.tune.batches


def _streams(config: Config, name: str, kind: str) -> list[int | None]:
    """1, 2, 4, ... up to the threads of a CPU device, or up to 2 of another one."""
    if name not in ("openvino", "onnxruntime", "torch", "simulated"):
        return [None]
    if "backend.streams" in config.typed():
        streams = config.backend.streams
        return [None if streams == "auto" else streams]
    if name == "torch" and kind == "cpu":  # a second one was not seen to gain
        return [1]
    devices = config.devices if isinstance(config.devices, int) else 1
    most = max(1, available_cores() // devices) if kind == "cpu" and name != "simulated" else 2
    return sorted({2**i for i in range(most.bit_length())} | {most})

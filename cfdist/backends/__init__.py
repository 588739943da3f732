"""Inference backends: one file each, loaded only when used."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from cfdist.ascend.npu_smi import list_npus
from cfdist.errors import UserError

if TYPE_CHECKING:
    from cfdist.backends.base import Backend, DeviceSettings
    from cfdist.model import ModelSpec

SIMULATED = "simulated"

# name -> (module, class, the package it needs)
BACKENDS = {
    "openvino": ("cfdist.backends.openvino", "OpenVINOBackend", "openvino"),
    "onnxruntime": ("cfdist.backends.onnxruntime", "OnnxRuntimeBackend", "onnxruntime"),
    "torch": ("cfdist.backends.torch", "TorchBackend", "torch"),
    # Not by the name ais_bench: an unrelated package has it too.
    "om": ("cfdist.backends.om", "OmBackend", "aclruntime"),
    SIMULATED: ("cfdist.backends.simulated", "SimulatedBackend", "numpy"),
}

CPU_PREFERENCE = ("openvino", "onnxruntime")

_INSTALL = {
    "torch": "`pip install -r requirements-torch.txt`",
    "om": (
        "the wheels aclruntime and ais_bench from that project's own pages, see docs/ascend.md "
        "(ais-bench-benchmark is another tool)"
    ),
}


def resolve(name: str) -> str:
    """The backend that a name means; "auto": om where NPUs and ais_bench are, else OpenVINO.

    Raises:
        UserError: no such backend, or its package is not installed.
    """
    if name == "auto":
        candidates = ("om", *CPU_PREFERENCE) if list_npus() else CPU_PREFERENCE
        for candidate in candidates:
            if _is_installed(candidate):
                return candidate
        raise UserError("backend=auto: neither openvino nor onnxruntime is installed; run ./run.sh")
    if name not in BACKENDS:
        raise UserError(f"backend={name}: no such backend; choose auto, {', '.join(BACKENDS)}")
    if not _is_installed(name):
        package = BACKENDS[name][2]
        how = _INSTALL.get(name, "`pip install -r requirements.txt`")
        raise UserError(
            f"backend={name}: the Python package {package!r} is not installed; get it: {how}, or "
            "choose another backend"
        )
    return name


def backend_class(name: str) -> type[Backend]:
    """The class of a resolved backend; imports the backend's package."""
    module, class_name, _ = BACKENDS[name]
    return getattr(importlib.import_module(module), class_name)


def create(name: str, spec: ModelSpec, settings: DeviceSettings) -> Backend:
    """Load a model on one device with a resolved backend."""
    return backend_class(name)(spec, settings)


def refuse_simulated(name: str, key: str) -> None:
    """Refuse the backend that finds nothing where what is found is kept or judged.

    Args:
        name: A backend.
        key: Where in the configuration it makes no sense.

    Raises:
        UserError: it is the simulated one.
    """
    if name == SIMULATED:
        raise UserError(
            f"{key}: the {SIMULATED} backend runs no model and finds nothing that could be kept or "
            "judged; choose another, such as backend=auto"
        )


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(BACKENDS[name][2]) is not None

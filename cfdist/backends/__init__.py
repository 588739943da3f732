"""Inference backends, loaded only when used.

One that is not this project's is named by its class, "module:Class"; see docs/extending.md.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, NamedTuple

from cfdist.ascend.npu_smi import list_npus
from cfdist.errors import UserError, did_you_mean
from cfdist.extensions import is_own_code, load_object
from cfdist.machine import pip_install

if TYPE_CHECKING:
    from cfdist.backends.base import Backend

AUTO = "auto"
SIMULATED = "simulated"
CPU_RUNTIMES = ("openvino", "onnxruntime")  # what "auto" chooses from, the first one if equal

_INSTALL = pip_install("requirements.txt")


class BackendEntry(NamedTuple):
    """Where a backend is; nothing is imported before it is used.

    Attributes:
        module: The module that holds its class.
        class_name: Its class, a `cfdist.backends.base.Backend`.
        package: The package that it needs, by the name under which Python imports it.
        install: How a person gets that package.
    """

    module: str
    class_name: str
    package: str
    install: str = _INSTALL


# What `backend=` calls each.
BACKENDS = {
    "openvino": BackendEntry(
        "cfdist.backends.openvino",
        "OpenVINOBackend",
        "openvino",
        f"{_INSTALL} (on aarch64 with glibc 2.35 or newer: requirements-openvino.txt)",
    ),
    "onnxruntime": BackendEntry("cfdist.backends.onnxruntime", "OnnxRuntimeBackend", "onnxruntime"),
    "torch": BackendEntry(
        *("cfdist.backends.torch", "TorchBackend", "torch"), pip_install("requirements-torch.txt")
    ),
    "om": BackendEntry(
        "cfdist.backends.om",
        "OmBackend",
        "aclruntime",  # an unrelated package has the name ais_bench too
        "the wheels aclruntime and ais_bench from that project's own pages, see docs/ascend.md "
        "(ais-bench-benchmark is another tool that takes the name ais_bench too: uninstall it)",
    ),
    SIMULATED: BackendEntry("cfdist.backends.simulated", "SimulatedBackend", "numpy"),
}


def is_cpu_auto(name: str) -> bool:
    """Whether a name leaves the CPU runtime open: it is "auto", and "auto" is not om here.

    `cfdist.backends.choice.choose_cpu_backend` then says which one is faster.
    """
    return name == AUTO and not (list_npus() and is_installed("om"))


def resolve(name: str, key: str = "backend.name") -> str:
    """The backend that a name means; messages about code of somebody's own name `key`.

    "auto" is om on a machine with NPUs and ais_bench, else the first CPU runtime that is
    installed, without measuring.

    Raises:
        UserError: no such backend, or its package is not installed.
    """
    if name == AUTO:
        return installed_cpu_runtimes()[0] if is_cpu_auto(name) else "om"
    if is_own_code(name):
        _refuse_other_class(name, key)
        return name
    if name not in BACKENDS:
        raise UserError(
            f"backend.name={name}: no such backend; choose {AUTO}, {', '.join(BACKENDS)} or "
            f"<module>:<class> of your own{did_you_mean(name, [AUTO, *BACKENDS])}"
        )
    if not is_installed(name):
        entry = BACKENDS[name]
        raise UserError(
            f"backend={name}: the Python package {entry.package!r} is not installed; get it: "
            f"{entry.install}, or choose another backend"
        )
    return name


def _refuse_other_class(name: str, key: str) -> None:
    from cfdist.backends.base import Backend

    found = load_object(name, key)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise UserError(
            f"{key}={name}: is no class that is derived from cfdist.backends.base.Backend; "
            "see docs/extending.md"
        )


def installed_cpu_runtimes() -> list[str]:
    """Those of `CPU_RUNTIMES` that are installed, at least one.

    Raises:
        UserError: none is installed.
    """
    installed = [name for name in CPU_RUNTIMES if is_installed(name)]
    if not installed:
        raise UserError(
            f"backend={AUTO}: neither {' nor '.join(CPU_RUNTIMES)} is installed; run ./run.sh"
        )
    return installed


def is_installed(name: str) -> bool:
    """Whether the package of a backend is installed."""
    return importlib.util.find_spec(BACKENDS[name].package) is not None


def backend_class(name: str) -> type[Backend]:
    """The class of a resolved backend; imports the backend's package."""
    found: type[Backend]
    if is_own_code(name):
        found = load_object(name, "backend.name")
    else:
        entry = BACKENDS[name]
        found = getattr(importlib.import_module(entry.module), entry.class_name)
    return found


def refuse_simulated(name: str, key: str) -> None:
    """Refuse the simulated backend for a job that keeps or judges what is found.

    Raises:
        UserError: it is the simulated one; the message begins with `key`, a setting.
    """
    if name == SIMULATED:
        raise UserError(
            f"{key}: the {SIMULATED} backend runs no model and finds nothing that could be kept or "
            "judged; choose another, such as backend=auto"
        )

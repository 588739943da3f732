"""Python and the packages: tried in a process of its own, for a broken one may end its process.

The standard library alone: this runs before anything else is imported, and in that process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from cfdist.doctor.table import Finding, can_run, table

_CHECKOUT = Path(__file__).resolve().parents[2]
_PINS = _CHECKOUT / "requirements.txt"
_LEAST_PYTHON = (3, 10)
_SECONDS = 60.0  # for the imports that are left; after that, one hangs

# Distributions whose module has another name.
_MODULES = {"hydra-core": "hydra", "opencv-python-headless": "cv2"}

# Without these some jobs, or some backends, run all the same; the run's own line tells.
_NOT_ALWAYS = ("openvino", "onnxruntime", "onnx", "scipy", "matplotlib", "requests", "setuptools")

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;#]*(?:;([^#]*))?")
_MOST_NAMED = 3


@functools.cache
def findings() -> tuple[Finding, ...]:
    """Python, each package that is imported, and the pins."""
    version = sys.version_info
    python = f"{version.major}.{version.minor}.{version.micro}, {sys.executable}"
    if version < _LEAST_PYTHON:
        return (Finding("FAULT", "Python", python, "install 3.10 or newer; PYTHON=... ./run.sh"),)
    tried = try_imports([_MODULES.get(name, name) for name in _required()])
    broken = {name: one for name, one in tried.items() if one.get("error")}
    rows = [Finding("ok", "Python", python)]
    sound = [f"{name} {one['version']}" for name, one in tried.items() if name not in broken]
    if sound:
        rows.append(Finding("ok", "packages", ", ".join(sound)))
    for name, one in broken.items():
        state: Any = "note" if name in _NOT_ALWAYS else "FAULT"
        cause = next((other for other in _needs(name) if other in broken), None)
        if cause:
            rows.append(Finding(state, name, f"needs {cause}, which is broken"))
        else:
            rows.append(Finding(state, name, one["error"], remedy_of(name)))
    return (*rows, *_other_versions())


def stop_early() -> bool:
    """Print the findings if the doctor itself cannot go on with these packages; whether it did."""
    if can_run(findings()):
        return False
    print(table(findings()))
    print("\nnothing can run before this is repaired; then call the doctor again")
    return True


def remedy_of(module: str) -> str:
    """How a person here repairs a package."""
    origin = _origin(module)
    env = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    for entry in _python_path():
        is_there = origin and Path(origin).absolute().is_relative_to(Path(entry).absolute())
        if is_there and entry not in env:
            return f"take {entry} out of PYTHONPATH; it hides the installed {module}"
    name = _distribution(module)
    wanted = f"{name}=={pins()[name]}" if name in pins() else name
    reinstall = "" if origin is None else " --force-reinstall --no-deps"
    if importlib.util.find_spec("pip"):
        return f"{sys.executable} -m pip install{reinstall} {wanted}"
    if shutil.which("uv"):
        return f"uv pip install --python {sys.executable}{reinstall} {wanted}"
    return f"call ./run.sh, which makes an environment of its own, or install {wanted}"


def _distribution(module: str) -> str:
    names = {module: name for name, module in _MODULES.items()}
    return names.get(module, module)


def _needs(module: str) -> list[str]:
    """The modules of what a package requires, as far as it is installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        required = metadata.requires(_distribution(module)) or ()
        also = ["numpy"] if module == "pyarrow" else []  # imports it, and does not require it
        return [_MODULES.get(name, name) for name, _ in _parsed(required)] + also
    return []


def _python_path() -> list[str]:
    return [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]


def _origin(module: str) -> str | None:
    with contextlib.suppress(ImportError, ValueError):
        if spec := importlib.util.find_spec(module):
            return spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    return None


def _required() -> Iterator[str]:
    """What is imported: the checkout's requirements, or those of the installed package."""
    file = _CHECKOUT / "requirements.in"
    lines: Sequence[str] = ()
    if file.is_file():
        lines = file.read_text().splitlines()
    else:
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines = metadata.requires("cfdist") or ()
    yield from (name for name, _ in _parsed(lines))


@functools.cache
def pins() -> Mapping[str, str]:
    """Distribution -> the version that requirements.txt pins for this Python; empty without it."""
    lines = _PINS.read_text().splitlines() if _PINS.is_file() else []
    return {
        name: found[1]
        for name, line in _parsed(lines)
        if (found := re.search(r"==([^\s;#]+)", line))
    }


def _parsed(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, line) of the requirements that count on this machine."""
    for line in lines:
        found = _REQUIREMENT.match(line)
        if found and _counts((found[2] or "").strip()):
            yield found[1].lower().replace("_", "-"), line


def _counts(marker: str) -> bool:
    if not marker:
        return True
    try:
        from packaging.markers import Marker

        return bool(Marker(marker).evaluate({"extra": ""}))
    except Exception:  # packaging itself may be what is broken
        return "platform_machine" in marker


def _other_versions() -> Iterator[Finding]:
    """Packages that are not as pinned, or not there, in one line."""
    others = []
    in_place = {"onnxruntime"} if _version("onnxruntime-gpu") else set()
    if in_place and _version("onnxruntime"):
        yield Finding(
            "note",
            "onnxruntime",
            "onnxruntime-gpu is there too, in the same folder: the one that came last is imported",
            f"{sys.executable} -m pip uninstall onnxruntime onnxruntime-gpu, then install one",
        )
    for name, pinned in pins().items():
        there = _version(name)
        if there.partition("+")[0] != pinned and (there or name not in in_place):
            others.append(f"{name} {there or 'missing'} (pinned {pinned})")
    if not pins():
        return
    if not others:
        yield Finding("ok", "pins", f"all {len(pins())} packages as in requirements.txt")
        return
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    yield Finding(
        "note",
        "pins",
        f"{', '.join(others[:_MOST_NAMED])}{more}: not what was tested",
        f"{sys.executable} -m pip install -r {_PINS}",
    )


def _version(distribution: str) -> str:
    """The installed version; empty if it is not there."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return ""


def try_imports(names: Sequence[str], seconds: float = _SECONDS) -> dict[str, dict[str, str]]:
    """Import packages in a process of its own; one that ends it, or hangs, is found out.

    Returns:
        Name -> version, and error, empty for a sound one.
    """
    found: dict[str, dict[str, str]] = {}
    left = list(names)
    while left:
        command = [sys.executable, "-m", "cfdist.doctor.packages", *left]
        # The child's folder is another one.
        path = [os.path.abspath(one) for one in _python_path()]
        environment = os.environ | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})
        reason = f"its import took longer than {seconds:g} s"
        try:
            done = subprocess.run(
                command, cwd=_CHECKOUT, env=environment, capture_output=True, timeout=seconds
            )
            reason = f"its import ended the process (status {done.returncode})"
            printed = done.stdout
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
        for line in printed.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                one = json.loads(line)
                found[one["name"]] = one
        left = [name for name in left if name not in found]
        if left:
            found[left.pop(0)] = {"version": "", "error": reason}
    return {name: found[name] for name in names}


def _import(name: str) -> dict[str, str]:
    try:
        module = import_module(name)
        version = str(getattr(module, "__version__", "") or metadata.version(name))
        version = version.partition("-")[0]
        return {"name": name, "version": version, "error": ""}
    except BaseException as error:
        text = " ".join(str(error).split())[:200]
        return {"name": name, "version": "", "error": f"{type(error).__name__}: {text}"}


if __name__ == "__main__":
    for _name in sys.argv[1:]:
        print(json.dumps(_import(_name)), flush=True)

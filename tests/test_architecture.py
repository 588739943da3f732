"""The house stays small and obvious: arrows point down, functions fit on a screen."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# From the ground up: a room imports itself and the rooms before it.
ROOMS = (
    *("errors", "extensions", "files", "machine", "monitoring", "storage", "preprocess"),
    *("model", "detections", "decode"),
    *("widerface", "coco", "sample", "ascend", "network", "backends"),
    *("config", "devices", "distributed"),
    *("inputs", "execution", "report", "comparison", "throughput", "workflow", "tuning"),
    *("download", "doctor", "trackers"),
    *("command", "detecting", "quantization", "sweep", "api"),
    "jobs",
    "main",
)
PURE = ("preprocess", "decode", "detections", "comparison.differences", "widerface.metric")
MAX_LOOSE_MODULES = 9
MAX_BODY_LINES = 50
MAX_PARAMETERS = 7


def source_files() -> list[Path]:
    return sorted(
        [*PROJECT.glob("cfdist/**/*.py"), *PROJECT.glob("jobs/*.py"), PROJECT / "main.py"]
    )


def module_of(path: Path) -> str:
    """The file's module without the package's name: "devices.reader", "jobs.evaluate"."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "cfdist" else parts
    return ".".join(part for part in parts if part != "__init__") or "cfdist"


MODULES = {module_of(path): path for path in source_files()}


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    """A file's syntax tree, node by node."""
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports_of(path: Path) -> set[str]:
    """The modules of this project that a file imports, also inside functions."""
    found = set()
    for node in nodes_of(path):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` takes the module, other names are the package's own.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            name = name.removeprefix("cfdist.")
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                found.add(name)
    return found - {"cfdist"}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_arrows_point_down():
    upwards = {
        (module, imported)
        for module, path in MODULES.items()
        for imported in imports_of(path)
        if module != "cfdist" and ROOMS.index(room_of(imported)) > ROOMS.index(room_of(module))
    }
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imports_of(path) - {name} for name, path in MODULES.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_job_imports_a_job():
    for name, path in MODULES.items():
        if room_of(name) == "jobs":
            assert not {one for one in imports_of(path) if room_of(one) == "jobs"} - {"jobs"}


@pytest.mark.parametrize("module", [name for name in PURE if name in MODULES])
def test_pure_modules_know_neither_ray_nor_hydra_nor_the_configuration(module):
    text = MODULES[module].read_text()
    for name in ("ray", "hydra", "omegaconf", "cfdist.config"):
        assert f"import {name}" not in text
        assert f"from {name}" not in text


def test_few_modules_lie_outside_of_the_rooms():
    loose = [path.stem for path in (PROJECT / "cfdist").glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= MAX_LOOSE_MODULES, loose


def test_functions_fit_on_a_screen():
    too_large = []
    nodes = [(module, node) for module, path in MODULES.items() for node in nodes_of(path)]
    for module, node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        count = sum(one.arg not in ("self", "cls") for one in arguments)
        if lines > MAX_BODY_LINES or count > MAX_PARAMETERS:
            too_large.append(f"{module} {node.name}: {lines} lines, {count} parameters")
    assert not too_large


def says_something(path: Path) -> bool:
    """Whether a file holds more than its docstring, imports and names that it hands on."""
    names = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)
    (module, *_) = nodes_of(path)
    return not all(isinstance(node, names) for node in module.body)


def test_each_source_file_has_a_test_file():
    missing = []
    for path in source_files():
        relative = path.relative_to(PROJECT)
        # Jobs and main.py are tried by whole commands, in tests/end_to_end.
        if relative.parts[0] != "cfdist" or not says_something(path):
            continue
        name = path.parent.name if path.stem == "__init__" else path.stem
        test = PROJECT / "tests" / Path(*relative.parts[1:-1]) / f"test_{name}.py"
        if not test.is_file():
            missing.append(str(relative))
    assert missing == []

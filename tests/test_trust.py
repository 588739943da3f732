"""Outside data is data: nothing of the product runs it, unpickles it or hands it to a shell."""

from __future__ import annotations

import ast

import pytest

from tests.test_architecture import MODULES, nodes_of

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("shelve.open", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
    *("joblib.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("tarfile.open", "shutil.unpack_archive", "zipfile.ZipFile.extractall"),
}
# Functions that are safe with one value of an argument only.
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "torch.jit.load": ("weights_only", True),  # it has no such argument: never
}
# A process's own child gets a model's description from it, through a pipe.
ALLOWED = {("backends.child", "pickle.load")}


def dotted(node: ast.expr) -> str:
    """The name of what is called: "a.b.c"; empty if it has none."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def findings(nodes: list[ast.AST]) -> list[str]:
    """What a source does that outside data must not meet."""
    names = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname and a.asname != "np"}
    found = []
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = dotted(node.func).partition(".")
        name = names.get(first, first) + dot + rest
        name = f"np{name.removeprefix('numpy')}" if name.startswith("numpy.") else name
        given = {one.arg: getattr(one.value, "value", None) for one in node.keywords}
        key, value = REQUIRED.get(name, ("shell", None))
        wrong = (
            key in given and given[key] is not False
            if key == "shell"
            else given.get(key) is not value
        )
        if name in FORBIDDEN or wrong or name.endswith(".extractall"):
            found.append(name)
    return found


@pytest.mark.slow
def test_no_module_runs_outside_data():
    found = {
        (module, name) for module, path in MODULES.items() for name in findings(nodes_of(path))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import pickle; pickle.loads(data)",
        "from pickle import loads as read; read(data)",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "import numpy; numpy.load(path)",
        "import subprocess; subprocess.run(text, shell=True)",
        "import subprocess; subprocess.run(text, shell=has_shell)",
        "import os; os.system(text)",
        "import yaml; yaml.load(text)",
        "archive.extractall(folder)",
    ],
)
def test_the_check_finds_it(source):
    assert len(findings([*ast.walk(ast.parse(source))])) == 1


def test_the_check_lets_the_safe_forms_be():
    safe = "import torch, subprocess; torch.load(p, weights_only=True); subprocess.run([p])"
    assert findings([*ast.walk(ast.parse(safe))]) == []

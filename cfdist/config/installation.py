"""Where this program's parts are: in a checkout, or in an installed package."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent.parent

# A wheel holds conf/ and jobs/ inside the package, a checkout beside it.
CHECKOUT = None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONFIG_FOLDER = (CHECKOUT or _PACKAGE) / "conf"

# How a person starts the program.
COMMAND = "python main.py" if CHECKOUT else "cfdist"


def load_job(name: str) -> ModuleType:
    """The module of a job: `jobs.<name>` of this checkout, else `cfdist.jobs.<name>`.

    Another package that is called `jobs` too is never imported.
    """
    if CHECKOUT is not None:
        found = importlib.util.find_spec("jobs")
        origin = Path((found and found.origin) or "").resolve()
        if origin == CHECKOUT / "jobs" / "__init__.py":
            return importlib.import_module(f"jobs.{name}")
    return importlib.import_module(f"cfdist.jobs.{name}")

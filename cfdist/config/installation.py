"""Where this program's parts are: in a checkout, or in an installed package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parent.parent

# A wheel holds conf/ and jobs/ inside the package, a checkout beside it.
CHECKOUT = None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONFIG_FOLDER = (CHECKOUT or _PACKAGE) / "conf"


def _command() -> str:
    """How a person starts the program; in the environment that run.sh has made, with run.sh."""
    if CHECKOUT is None:
        return "cfdist"
    return "./run.sh" if Path(sys.prefix) == CHECKOUT / ".venv" else "python main.py"


COMMAND = _command()

# Where groups are looked for: `conf/`, then the folder that --config-dir has named.
config_folders = [CONFIG_FOLDER]


def groups() -> list[str]:
    """The groups of the configuration, such as "model"."""
    found = {path.parent.name for folder in config_folders for path in folder.glob("*/*.yaml")}
    return sorted(found)


def group_choices(group: str) -> list[str]:
    """The names that a group has, such as "openvino" of "backend"; none if it is no group."""
    return sorted({path.stem for path in _files_of(group)})


def choice_file(group: str, choice: str) -> Path | None:
    """The file of a group's choice; `None` if there is no such choice."""
    return next((path for path in _files_of(group) if path.stem == choice), None)


def _files_of(group: str) -> list[Path]:
    # Not by the name: what a person types may be anything, also "../outputs".
    inside = [path for folder in config_folders for path in folder.glob("*/*.yaml")]
    return [path for path in inside if path.parent.name == group]


def load_job(name: str) -> ModuleType:
    """The module of a job: `jobs.<name>` of this checkout, else `cfdist.jobs.<name>`.

    Another package that is called `jobs` too is never imported.
    """
    found = importlib.util.find_spec("jobs") if CHECKOUT else None
    origin = Path((found and found.origin) or "").resolve()
    is_ours = CHECKOUT is not None and origin == CHECKOUT / "jobs" / "__init__.py"
    return importlib.import_module(f"jobs.{name}" if is_ours else f"cfdist.jobs.{name}")

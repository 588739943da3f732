"""The package's own names: all there, and imported when they are asked for."""

from __future__ import annotations

import subprocess
import sys

import cfdist
from tests.conftest import PROJECT

CHEAP = """
import sys
import cfdist
heavy = {"numpy", "ray", "hydra", "pydantic", "cv2"} & set(sys.modules)
assert not heavy, heavy
try:
    cfdist.nothing
except AttributeError as error:
    print(error)
"""


def test_the_package_alone_takes_no_time_to_import():
    done = subprocess.run(
        [sys.executable, "-c", CHEAP], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "module 'cfdist' has no attribute 'nothing'\n", done.stderr


def test_every_name_is_there_and_no_room_hides_it():
    for name in cfdist.__all__:
        assert callable(getattr(cfdist, name))
        assert not (PROJECT / "cfdist" / name / "__init__.py").exists()

"""What waits for an actor has imported what actors need, and nothing that others need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.distributed.test_processes import HEAVY

# What preloading leaves, and whether pyarrow still takes pandas where it is asked to.
LEAVES = """
import os, sys
import cfdist.distributed.preloaded
print(os.environ.get("OMP_NUM_THREADS"), *sys.modules)
import pyarrow, pandas
print(pyarrow.array([1, 2]).to_pandas().sum())
"""


@pytest.mark.slow
def test_only_what_actors_need_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    first, last = done.stdout.splitlines()
    threads, *found = first.split()
    assert threads == "None"
    assert {"cv2", "pyarrow.compute", "cfdist.devices.detector"} <= {*found}
    assert {*HEAVY, "pandas"}.isdisjoint(found)
    assert last == "3"

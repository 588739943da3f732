"""What the processes of a session that is kept import while they wait for an actor.

Ray says how many threads a library may have only when there is an actor. Until then it is one.
"""

from __future__ import annotations

import os

_NAME = "OMP_NUM_THREADS"
_before = os.environ.get(_NAME)
os.environ[_NAME] = _before or "1"

import cv2  # noqa: E402, F401
import pyarrow.compute  # noqa: E402, F401

from cfdist.detections import arrow_without_pandas  # noqa: E402
from cfdist.devices import detector  # noqa: E402, F401
from cfdist.distributed import device_actor, watch  # noqa: E402, F401

arrow_without_pandas()
if _before is None:
    del os.environ[_NAME]

"""cfdist: the WIDER FACE accuracy and the speed of CenterFace, on many devices at once.

The functions and types of `__all__` are for other programs, see docs/api.md.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfdist.api import (
        AveragePrecision,
        Comparison,
        Detection,
        Evaluation,
        Face,
        InputError,
        Run,
        Score,
        StoppedError,
        compare,
        detect,
        evaluate,
        score,
        session,
    )

__version__ = "0.1.0"
__all__ = [
    "AveragePrecision",
    "Comparison",
    "Detection",
    "Evaluation",
    "Face",
    "InputError",
    "Run",
    "Score",
    "StoppedError",
    "compare",
    "detect",
    "evaluate",
    "score",
    "session",
]

# Once imported, ONNX Runtime tells its maker of it and leaves a file in the temporary folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported when it is asked for: that takes time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("cfdist.api"), name)

"""Whether a runtime runs a model of an unusual kind: tried before the run, in another process.

What a runtime has kernels for is known to nobody but itself, and a damaged graph can end the
process that loads it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cfdist import backends
from cfdist.backends import child
from cfdist.backends.base import DeviceSettings
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import to_model_input

_REASON_LENGTH = 300  # characters; runtimes tell whole stories


def refuse_if_it_fails(
    backend: str, spec: ModelSpec, options: Mapping[str, Any], parts: list[str]
) -> None:
    """Run one black picture through a model on the CPU, in a process of its own.

    Args:
        backend: A backend's name.
        spec: The model.
        options: The backend's settings.
        parts: What is unusual in the model, for the message; none if only the settings are.

    Raises:
        UserError: the backend cannot run it.
    """
    reason = reason_against(backend, replace(spec, batch=1), options)
    if reason and not parts:
        raise UserError(reason)
    if reason:
        whole, prefix = reason, f"model {spec.path}: "
        if whole.startswith(prefix):  # a refusal: what is wrong, without its advice
            reason = whole.removeprefix(prefix).rpartition("; ")[0] or whole
        raise UserError(
            f"model {spec.path}: backend={backend} cannot run it ({reason}); it holds "
            f"{', '.join(parts)}: choose another backend, or export it in float32"
        )


def reason_against(backend: str, spec: ModelSpec, options: Mapping[str, Any]) -> str:
    """Why a backend cannot infer a black picture here, tried once; an empty text if it can."""
    return _reason(backend, spec, json.dumps(dict(options), sort_keys=True))


@functools.lru_cache(maxsize=64)
def _reason(backend: str, spec: ModelSpec, options: str) -> str:
    """Why a backend cannot run a model; empty if it can."""
    try:
        return str(child.call("cfdist.backends.trial", backend, spec, json.loads(options)))
    except child.ChildError as error:
        return f"one picture {error}"


def failure(backend: str, spec: ModelSpec, options: Mapping[str, Any]) -> str:
    """Load a model here and infer a black picture: why that fails, or an empty text."""
    try:
        loaded = backends.backend_class(backend)(spec, DeviceSettings(options=options))
        black = np.zeros((1, spec.height, spec.width, 3), np.uint8)
        loaded.infer(to_model_input(black, loaded.contract))
    except Exception as error:  # runtimes have errors of their own
        return " ".join(str(error).split())[:_REASON_LENGTH] or type(error).__name__
    return ""


if __name__ == "__main__":
    child.answer(failure)

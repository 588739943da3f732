"""CenterFace checkpoints (`.pth`), read safely and checked before any weight is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch

from cfdist.errors import UserError
from cfdist.model.formats import format_of
from cfdist.network.centerface import VARIANTS, CenterFace

_LISTED = 8  # names listed in an error before "and N more"

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# A weight with one value per channel of the neck.
_NECK_VECTOR = "dla_up.conv.1.weight"

# The end of the name of a batch norm's count of training steps. Inference does not read the count,
# and old PyTorch did not write it.
_COUNTER = ".num_batches_tracked"

# DataParallel and torch.compile put these before each name of the network that they wrap.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")

_State = Mapping[str, torch.Tensor]


def load_network(path: Path, convention: str) -> CenterFace:
    """The network of a checkpoint, float32 on the CPU, in evaluation mode.

    The file holds a plain `state_dict` or `{"state_dict": ...}`, with or without the prefixes of
    `DataParallel` (`module.`) and `torch.compile` (`_orig_mod.`). Weights of 16, 32 or 64 bits
    become float32. Only tensors are unpickled, so a checkpoint cannot run code.

    Args:
        path: The `.pth` file.
        convention: A key of `cfdist.network.centerface.VARIANTS`.

    Raises:
        UserError: not a file, not a checkpoint, or names, shapes, dtypes or values of another
            network.
    """
    if convention not in VARIANTS:
        raise UserError(
            f"model.convention={convention}: a checkpoint's network has to be one of "
            f"{', '.join(VARIANTS)}; give the model as an ONNX"
        )
    state = _state_dict(_unpickle(path), path)
    while all(name.startswith(_WRAPPER_PREFIXES) for name in state):  # wrappers can be nested
        state = {name.partition(".")[2]: value for name, value in state.items()}
    width = state[_NECK_VECTOR].numel() if _NECK_VECTOR in state else 1
    with torch.device("meta"):  # shapes only, until the weights are assigned
        network = CenterFace(convention, max(1, width)).eval()
    expected = network.state_dict()
    counters = {name: torch.tensor(0) for name in expected if name.endswith(_COUNTER)}
    weights = {name: value for name, value in state.items() if name not in counters}
    _check_names_and_shapes({**weights, **counters}, expected, path)
    network.load_state_dict({**_float32(weights, path), **counters}, assign=True)
    return network


def _first_few(names: Sequence[str]) -> str:
    """Names in one line; only the first `_LISTED` of many."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"checkpoint {path}: cannot be read ({error.strerror or error}); "
            "give the path of a .pth file"
        ) from None
    except Exception as error:  # an arbitrary file can raise anything in an unpickler
        raise UserError(f"checkpoint {path}: {_why_not_a_checkpoint(path, error)}") from None


def _why_not_a_checkpoint(path: Path, error: Exception) -> str:
    """Why `torch.load` refuses a file, and what to do about it."""
    found = format_of(path)
    if found and not found.backends:
        return f"is {found.name}, not a PyTorch checkpoint; {found.remedy}"
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return (
            "holds Python objects besides tensors, which are not loaded because they can run "
            "code; save it anew as torch.save({'state_dict': model.state_dict()}, path)"
        )
    return (
        "not a PyTorch checkpoint, or damaged; give the .pth that torch.save wrote, and compare "
        "its size with the source's"
    )


def _state_dict(content: Any, path: Path) -> _State:
    """The weights in what a checkpoint file holds."""
    entries = content if isinstance(content, Mapping) else {}
    state = entries.get("state_dict", entries)
    if _is_state_dict(state):
        return state
    elsewhere = [repr(name) for name, value in entries.items() if _is_state_dict(value)]
    hint = "as torch.save(model.state_dict(), path) writes"
    if elsewhere:
        hint = (
            f"but there are weights under {_first_few(elsewhere)}; save the right ones anew as "
            f"torch.save({{'state_dict': torch.load(old_path)[{elsewhere[0]}]}}, path)"
        )
    raise UserError(
        f"checkpoint {path}: holds no weights; expected a state_dict (names to tensors) or a "
        f"dictionary with one under 'state_dict', {hint}"
    )


def _is_state_dict(value: Any) -> TypeGuard[_State]:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _check_names_and_shapes(weights: _State, expected: _State, path: Path) -> None:
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
    }
    if not any(problems.values()):
        problems["misshapen"] = [
            f"{name} {_shape(weights[name])} instead of {_shape(value)}"
            for name, value in expected.items()
            if weights[name].shape != value.shape
        ]
    found = "; ".join(f"{what} {_first_few(names)}" for what, names in problems.items() if names)
    if found:
        raise UserError(
            f"checkpoint {path}: not this CenterFace's weights: {found}; give a checkpoint of this "
            "network, or choose the model that it belongs to"
        )


def _float32(weights: _State, path: Path) -> _State:
    """The weights as float32.

    Raises:
        UserError: integers, complex, quantised or sparse weights, or values that are not finite.
    """
    odd = [
        f"{name} ({value.dtype}, {value.layout}, {value.device})"
        for name, value in weights.items()
        if value.layout != torch.strided or value.is_meta or value.dtype not in _FLOATS
    ]
    if odd:
        raise UserError(
            f"checkpoint {path}: weights that are no plain floats: {_first_few(odd)}; save them "
            "anew as dense float32 tensors, before any quantisation"
        )
    floats = {name: value.float() for name, value in weights.items()}
    not_finite = [name for name, value in floats.items() if not bool(value.isfinite().all())]
    if not_finite:
        raise UserError(
            f"checkpoint {path}: NaN or infinite values in {_first_few(not_finite)}; the training "
            "diverged or the file is damaged, give another checkpoint"
        )
    return floats


def _shape(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"

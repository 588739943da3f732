"""CenterFace checkpoints (`.pth`): read safely, checked whole before anything is loaded."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch

from cfdist.errors import UserError
from cfdist.network.centerface import BATCH_COUNTER, CenterFace

_LISTED = 8  # names listed in an error before "and N more"

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What wraps a network puts this before each of its names: DataParallel, torch.compile.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")

# Archives of whole programs, by a file that only they have: their kind, and how to get the weights.
_PROGRAMS = {
    "constants.pkl": ("TorchScript archive", "torch.jit.load(old_path).state_dict()"),
    "archive_format": ("torch.export archive", "torch.export.load(old_path).state_dict"),
}

_State = Mapping[str, torch.Tensor]


def load_network(path: Path | str, convention: str) -> CenterFace:
    """The network of a checkpoint, float32 on the CPU, in evaluation mode.

    A plain `state_dict` and `{"state_dict": ...}` are taken, with or without the prefixes of
    `DataParallel` (`module.`) and `torch.compile` (`_orig_mod.`). The neck is as wide as the
    weights say. Weights of 16, 32 or 64 bits become float32. Only tensors are unpickled: a
    checkpoint runs no code. The counters `num_batches_tracked` may be absent (old PyTorch did not
    write them, inference does not read them).

    Args:
        path: The `.pth` file.
        convention: A key of `cfdist.network.centerface.VARIANTS`.

    Raises:
        UserError: not a file, not a checkpoint, or names, shapes, dtypes or values of another
            network.
    """
    state = _without_wrapper_prefixes(_state_dict(_unpickle(Path(path)), path))
    network = CenterFace.without_weights(convention, _neck_width(state, convention, path))
    _check_shapes(state, network.state_dict(), path)
    return network.with_weights(_float32_weights(state, path))


def listed(names: Iterable[str]) -> str:
    """Names in one line, the first few of many."""
    names = list(names)
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
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        inside = {name.rpartition("/")[2] for name in archive.namelist()}
        for kind, weights in (_PROGRAMS[name] for name in _PROGRAMS if name in inside):
            return (
                f"is a {kind}, a program and not only weights; save its weights as "
                f"torch.save({{'state_dict': {weights}}}, path)"
            )
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return (
            "holds Python objects besides tensors, which are not loaded because they can run "
            "code; save it anew as torch.save({'state_dict': model.state_dict()}, path)"
        )
    return (
        "not a PyTorch checkpoint, or damaged; give the .pth that torch.save wrote, and compare "
        "its size with the source's"
    )


def _state_dict(content: Any, path: Path | str) -> _State:
    """The weights in what a checkpoint file holds."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if _is_state_dict(state):
        return state
    entries = content.items() if isinstance(content, Mapping) else ()
    elsewhere = [name for name, value in entries if _is_state_dict(value)]
    hint = "as torch.save(model.state_dict(), path) writes"
    if elsewhere:
        hint = (
            f"but there are weights under {listed(map(repr, elsewhere))}; save the right ones anew "
            f"as torch.save({{'state_dict': torch.load(old_path)[{elsewhere[0]!r}]}}, path)"
        )
    raise UserError(
        f"checkpoint {path}: holds no weights; expected a state_dict (names to tensors) or a "
        f"dictionary with one under 'state_dict', {hint}"
    )


def _is_state_dict(value: Any) -> TypeGuard[_State]:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
    )


def _without_wrapper_prefixes(state: _State) -> _State:
    """The state with the network's own names; wrappers may be nested in any order."""
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            inner = {name.removeprefix(prefix): value for name, value in state.items()}
            return _without_wrapper_prefixes(inner)
    return state


def _neck_width(state: _State, convention: str, path: Path | str) -> int:
    """The width of the neck, on which all weights have to agree.

    Raises:
        UserError: names of another network, or no width.
    """
    # A weight that grows with the neck has the neck's width as its first axis that grows.
    narrow = CenterFace.without_weights(convention, 2).state_dict()
    wide = CenterFace.without_weights(convention, 3).state_dict()
    _check_names(state, narrow, path)
    names_by_width: dict[int, list[str]] = {}
    for name, value in wide.items():
        differs = [a != b for a, b in zip(narrow[name].shape, value.shape, strict=True)]
        if any(differs) and name in state and state[name].ndim == value.ndim:
            names_by_width.setdefault(state[name].shape[differs.index(True)], []).append(name)
    found = "; ".join(f"{width} in {listed(names)}" for width, names in names_by_width.items())
    if len(names_by_width) != 1:
        raise _other_network(path, f"the neck's widths disagree: {found or 'none is stated'}")
    (width,) = names_by_width
    if width == 0:
        raise _other_network(path, f"the neck has no channels: {found}")
    return width


def _check_names(state: _State, expected: _State, path: Path | str) -> None:
    missing = [name for name in expected if name not in state and not name.endswith(BATCH_COUNTER)]
    unexpected = [name for name in state if name not in expected]
    problems = {"missing": missing, "unexpected": unexpected}
    found = "; ".join(f"{what} {listed(names)}" for what, names in problems.items() if names)
    if found:
        raise _other_network(path, found)


def _check_shapes(state: _State, expected: _State, path: Path | str) -> None:
    misshapen = [
        f"{name} {_shape(state[name])} instead of {_shape(value)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if misshapen:
        raise _other_network(path, f"misshapen {listed(misshapen)}")


def _float32_weights(state: _State, path: Path | str) -> _State:
    """The weights as finite float32 tensors; counters stay as they are.

    Raises:
        UserError: integers, complex, quantised or sparse weights, or values that are not finite.
    """
    weights = {name: value for name, value in state.items() if not name.endswith(BATCH_COUNTER)}
    odd = [
        f"{name} ({value.dtype}, {value.layout}, {value.device})"
        for name, value in state.items()
        if value.layout != torch.strided
        or value.is_meta
        or (name in weights and value.dtype not in _FLOATS)
    ]
    if odd:
        raise UserError(
            f"checkpoint {path}: weights that are no plain floats: {listed(odd)}; save them anew "
            "as dense float32 tensors, before any quantisation"
        )
    weights = {name: value.float() for name, value in weights.items()}
    not_finite = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if not_finite:
        raise UserError(
            f"checkpoint {path}: NaN or infinite values in {listed(not_finite)}; the training "
            "diverged or the file is damaged, give another checkpoint"
        )
    return {**state, **weights}


def _shape(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _other_network(path: Path | str, found: str) -> UserError:
    return UserError(
        f"checkpoint {path}: not this CenterFace's weights: {found}; give a checkpoint of this "
        "network, or choose the model that it belongs to"
    )

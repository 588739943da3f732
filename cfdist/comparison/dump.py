"""What an NPU computed inside of an OM: its own dump, which Ascend's converter made NumPy's.

File names and the OM's description are as msaccucmp.py of CANN 8.1 writes and reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cfdist.comparison.ir import Run
from cfdist.comparison.topology import Layer, Matched, layers_of
from cfdist.errors import UserError

# <type>.<operator>.<task, stream, time and more numbers>.output.<index>.<shape>.npy
_FILE = re.compile(r"[\w-]+\.([\w-]+)(?:\.\d+)+\.output\.(\d+)\.(?:[\dx]*\.)?npy", re.ASCII)
_HOW = "see docs/ascend.md, 'Which layer of an OM differs'"


@dataclass(frozen=True)
class DumpedModel:
    """A side of the comparison whose tensors are there already.

    Attributes:
        files: The arrays' files, (n, ...) each, by "<the OM's operator>:<output>".
    """

    files: Mapping[str, Path]

    def part(self, tensors: Sequence[str]) -> Run:
        """Some tensors, whatever the input; it has to be the one that the NPU had."""
        return lambda _: [_load(self.files[name]) for name in tensors]

    def input(self, letterboxed: NDArray[np.uint8]) -> NDArray[Any]:
        """The pictures themselves."""
        return letterboxed


def match_dump(reference: onnx.ModelProto, folder: Path) -> tuple[DumpedModel, Matched]:
    """A dump, and its tensors beside those of the ONNX that the OM was made from.

    ATC notes which output of which ONNX node each output of an operator is; what it fused away
    is not there.

    Args:
        reference: The ONNX.
        folder: The .npy files, and one .json, the OM's description by `atc --mode=1`.

    Raises:
        UserError: no such folder, no dump of this ONNX, or arrays of other shapes.
    """
    files = _files(folder)
    tensors = {
        (node.name, i): name
        for node in reference.graph.node
        if node.name
        for i, name in enumerate(node.output)
    }
    places: dict[str, str] = {}
    for place, origin in _origins(folder).items():
        if place in files and origin in tensors:
            places.setdefault(tensors[origin], place)
    layers = layers_of(reference, frozenset(), is_core=False)
    there = [layer for layer in layers if layer.tensor in places]
    pairs = [
        (layer, replace(layer, tensor=places[layer.tensor]))
        for layer in there
        if _holds_floats(layer, files[places[layer.tensor]])
    ]
    if not there:
        raise UserError(
            f"compare.dump={folder}: none of its {len(files)} tensors is the output of an operator "
            "of the reference, by name; give the ONNX that the OM was made from, its operators "
            "named"
        )
    if not pairs:
        raise UserError(
            f"compare.dump={folder}: of {len(there)} tensors of the reference it holds no floats; "
            "give the dump of an OM that is not quantised"
        )
    how = f"the names that ATC keeps; {len(layers) - len(there)} others are not in the dump"
    if without := len(there) - len(pairs):
        how += f", and of {without} it holds no floats"
    return DumpedModel(files), Matched(pairs, how)


def _files(folder: Path) -> dict[str, Path]:
    """The outputs' files, by operator and output."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.npy")):
        if match := _FILE.fullmatch(path.name):
            place = f"{match[1]}:{match[2]}"
            if place in found:
                raise UserError(
                    f"compare.dump={folder}: {found[place].name} and {path.name} are the same "
                    "output; leave the files of one inference"
                )
            found[place] = path
    if not found:
        raise UserError(
            f"compare.dump={folder}: holds no <type>.<operator>.<...>.output.<index>.<shape>.npy, "
            f"as msaccucmp.py writes them; {_HOW}"
        )
    return found


def _origins(folder: Path) -> dict[str, tuple[str, int]]:
    """Which output of which ONNX node the outputs of an OM's operators are."""
    paths = sorted(folder.glob("*.json"))
    if len(paths) != 1:
        raise UserError(
            f"compare.dump={folder}: holds {len(paths)} .json files, expected one, which atc "
            f"--mode=1 writes of the OM; {_HOW}"
        )
    found: dict[str, tuple[str, int]] = {}
    try:
        for place, origin in _outputs(json.loads(paths[0].read_text("utf-8"))):
            # Two operators whose names differ in what a file name does not hold: neither counts.
            found[place] = origin if found.get(place, origin) == origin else ("", 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"compare.dump={paths[0]}: is no description of an OM by atc --mode=1 "
            f"({type(error).__name__}: {error}); {_HOW}"
        ) from None
    return found


def _outputs(description: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    for operator in (one for graph in description["graph"] for one in graph["op"]):
        name = operator["name"]
        is_made_from_others = "_datadump_original_op_names" in _attributes(operator)
        for i, output in enumerate(operator.get("output_desc", [])):
            values = _attributes(output)
            origin = values.get("_datadump_origin_name", {}).get("s", "")
            index = values.get("_datadump_origin_output_index", {}).get("i", i)
            if not origin and not is_made_from_others:
                origin = name
            # File names have no other characters.
            yield f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}:{i}", (origin, index)


def _attributes(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {one["key"]: one["value"] for one in owner.get("attr", [])}


def _load(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"compare.dump: {path} cannot be read ({error}); convert it anew") from None
    return array


def _holds_floats(layer: Layer, path: Path) -> bool:
    """Whether a file is of a tensor that can be compared, and not of bytes.

    Raises:
        UserError: it is of another shape.
    """
    found = _load(path)
    if found.shape[1:] != layer.shape:
        raise UserError(
            f"compare.dump: {path} is {found.shape}, but {layer} is (n, "
            f"{', '.join(map(str, layer.shape))}); convert the dump with -f NCHW, and set "
            "model.height and model.width to the OM's"
        )
    return bool(np.issubdtype(found.dtype, np.floating))

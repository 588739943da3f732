"""A model's files as bytes, for nodes that do not see them, and their place on such a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cfdist.files import atomic_write, user_cache
from cfdist.model import ModelSpec
from cfdist.model.onnx_files import parse_graph, weight_files

ModelFiles = Mapping[str, bytes]  # name relative to the model's folder -> content


def pack(spec: ModelSpec) -> ModelFiles:
    """All files of a model.

    Raises:
        OSError: one cannot be read.
    """
    graph, folder = parse_graph(spec.path), spec.path.parent
    others = [] if graph is None else weight_files(graph, spec.path)
    names = [spec.path.name, *(str(one.relative_to(folder.resolve())) for one in others)]
    return {name: (folder / name).read_bytes() for name in names}


def unpack(spec: ModelSpec, files: ModelFiles) -> ModelSpec:
    """Put a model's files into this node's cache; returns the model at its new place.

    The folder is named by the model's digest, so that devices and runs share it. A file that is
    there already with the very content stays.

    Raises:
        OSError: the cache cannot be written to.
    """
    folder = user_cache() / "models" / spec.sha256
    for name, content in files.items():
        path = folder / name
        if not _holds(path, content):
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
    return replace(spec, path=folder / spec.path.name)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content."""
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content

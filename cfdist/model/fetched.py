"""A model at a URI: its files are fetched into this user's cache, once as long as they stay."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cfdist.files import user_cache
from cfdist.model.onnx_files import parse_graph, weight_places
from cfdist.storage import remote_folder


def fetch_model(uri: str) -> Path:
    """Fetch a model's file and the files of its weights, those that are new or have changed.

    Returns:
        The file's path in the cache, under its own name.

    Raises:
        OSError: the file is not there, or one cannot be read or written; `strerror` says why.
    """
    head, mark, query = uri.partition("?")
    parent, _, name = head.rpartition("/")
    parent += mark + query
    folder = _cache() / hashlib.sha256(parent.encode(errors="surrogateescape")).hexdigest()[:16]
    remote = remote_folder(parent)
    path = remote.fetch(name, folder)
    graph = parse_graph(path)
    # A place that leads out of the folder, or where nothing is, is refused with the model.
    places = [] if graph is None else weight_places(graph)
    for place in remote.holds(one for one in places if (folder / one).resolve() != path.resolve()):
        remote.fetch(place, folder)
    return path


def is_fetched(path: Path) -> bool:
    """Whether a model's file is one that was fetched: other hosts do not have it there."""
    return path.is_relative_to(_cache().resolve())


def _cache() -> Path:
    return user_cache() / "models" / "fetched"

"""Which pictures of the ground truth are there, in the folder layout of WIDER FACE."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfdist.errors import UserError
from cfdist.preprocess import (
    DecodedPicture,
    StoredPicture,
    decode_stored,
    picture_content,
    read_into,
)
from cfdist.storage import is_uri, open_store, place_of

SUFFIX = ".jpg"

_REMEDY = (
    "give WIDER_val.zip, which job=download gets, the folder that holds images/<event>/<name>.jpg "
    "(WIDER_val), or a URI of either"
)


@dataclass(frozen=True)
class WorkItem:
    """One picture to evaluate.

    Attributes:
        id: "<event>/<stem>", the name that ground truth and predictions share.
        path: The picture file, or its place in a store (`cfdist.storage`).
        size: Its size in bytes.
        pass_number: Which pass over the data set this is, from 1.
        use_damaged: Whether a damaged file is used as a decoder makes it; else it has failed.
        is_upright: Whether it is turned as its EXIF orientation says.
    """

    id: str
    path: str
    size: int
    pass_number: int = 1
    use_damaged: bool = False
    is_upright: bool = False

    @property
    def key(self) -> str:
        """The item's name in its run: the id, and from the second pass on "<id>/<pass>"."""
        return self.id if self.pass_number == 1 else f"{self.id}/{self.pass_number}"

    def fill(self, row: NDArray[np.uint8]) -> StoredPicture:
        """Read and letterbox the picture into its place in a batch, see `read_into`."""
        return read_into(self.path, row, self.use_damaged, self.is_upright)

    def decode(self) -> DecodedPicture:
        """Read and decode the picture, see `decode_stored`."""
        return decode_stored(picture_content(self.path), self.use_damaged, self.is_upright)


def picture_and_pass(key: str) -> tuple[str, int]:
    """The picture's id and the pass number of a `WorkItem.key`; an id has one slash."""
    event, name, *number = key.split("/")
    return f"{event}/{name}", int(number[0]) if number else 1


@dataclass(frozen=True)
class Manifest:
    """The pictures of a run, in the ground truth's order.

    Attributes:
        items: The pictures to evaluate.
        absent: Pictures of the ground truth that are not in the folder.
        unknown: Pictures in the folder that the ground truth does not have.
    """

    items: tuple[WorkItem, ...]
    absent: int
    unknown: int

    def repeated(self, passes: int) -> Manifest:
        """The same pictures in several passes, one pass after the other."""
        items = [
            replace(item, pass_number=number)
            for number in range(1, passes + 1)
            for item in self.items
        ]
        return replace(self, items=tuple(items))

    @property
    def pictures(self) -> tuple[WorkItem, ...]:
        """The items of the first pass: each picture once."""
        return tuple(item for item in self.items if item.pass_number == 1)

    @property
    def passes(self) -> int:
        """How many passes over the pictures there are; the last may be incomplete."""
        return max((item.pass_number for item in self.items), default=0)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pictures' ids and sizes, in order, however many passes there are.

        It is another one if damaged pictures are used.
        """
        digest = hashlib.sha256()
        for item in self.pictures:
            used = "\0use damaged" if item.use_damaged else ""
            digest.update(f"{item.id}\0{item.size}{used}\n".encode())
        return digest.hexdigest()


def build_manifest(
    root: Path | str, ids: Collection[str], limit: int | None = None, use_damaged: bool = False
) -> Manifest:
    """Find the ground truth's pictures in a folder.

    Args:
        root: A folder with `images/<event>/<stem>.jpg` (as `WIDER_val`), one that holds
            `WIDER_val`, or the `images` folder itself; a zip archive of one of these, at any depth,
            or the URI of either.
        ids: The ground truth's "<event>/<stem>", in its order.
        limit: Take at most this many, the first of the pictures that are there.
        use_damaged: See `WorkItem`.

    Raises:
        UserError: the folder is missing, or holds none of the pictures.
        OSError: it cannot be read.
    """
    folder = Path(root)
    if is_uri(str(root)) or folder.is_file():
        there = _scan_store(str(root) if is_uri(str(root)) else os.path.abspath(folder), ids)
    elif folder.is_dir():
        below = (folder / "images", folder / "WIDER_val" / "images")
        images = next((one for one in below if one.is_dir()), folder)
        there = _scan(images, {id.partition("/")[0] for id in ids})
    else:
        raise UserError(f"dataset.root={root}: no such folder or archive; {_REMEDY}")
    items = [WorkItem(id, *there.pop(id), use_damaged=use_damaged) for id in ids if id in there]
    if not items:
        raise UserError(
            f"dataset.root={root}: none of the ground truth's {len(ids)} pictures is there "
            f"({len(there)} other pictures found); expected images/<event>/<name>{SUFFIX}"
        )
    return Manifest(tuple(items[:limit]), len(ids) - len(items), len(there))


def event_files(folder: Path, events: Collection[str]) -> Iterator[Path]:
    """The files `<event>/<name>` of a folder, and of its other subfolders where these can be read.

    Raises:
        OSError: the folder, or the subfolder of one of `events`, cannot be read. (`Path.glob` would
            leave it out without a word.)
    """
    for subfolder in sorted(folder.iterdir()):
        try:
            names = sorted(subfolder.iterdir()) if subfolder.is_dir() else []
        except OSError:
            if subfolder.name in events:
                raise
            continue
        yield from names


def _scan(images: Path, events: Collection[str]) -> dict[str, tuple[str, int]]:
    """Id -> (path, bytes) of all pictures one folder below `images`.

    A picture whose size cannot be asked for has 0 bytes here; reading it later gives the reason.
    """
    found = {}
    for path in event_files(Path(os.path.abspath(images)), events):
        if path.suffix.lower() == SUFFIX:
            try:
                size = path.stat().st_size
            except OSError:
                size = 0
            found[f"{path.parent.name}/{path.stem}"] = (str(path), size)
    return found


def _scan_store(root: str, ids: Collection[str]) -> dict[str, tuple[str, int]]:
    """Id -> (place, bytes) of the pictures in a store, in the folder that has most of the `ids`.

    Raises:
        UserError: it cannot be read, or two of its folders have as many.
    """
    try:
        sizes = open_store(root).sizes
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"dataset.root={root}: {reason}; {_REMEDY}") from None
    wanted = set(ids)
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for name in sorted(sizes):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() == SUFFIX and "/" in stem:
            folder, event, picture = f"/{stem}".rsplit("/", 2)
            found.setdefault(folder, {})[f"{event}/{picture}"] = place_of(root, name), sizes[name]
    counts = {folder: len(wanted & pictures.keys()) for folder, pictures in found.items()}
    best = [folder for folder, count in counts.items() if count == max(counts.values())]
    if len(best) > 1 and counts[best[0]]:
        raise UserError(
            f"dataset.root={root}: holds {counts[best[0]]} pictures in {best[0][1:] or '.'} and as "
            f"many in {best[1][1:] or '.'}; keep one of the two"
        )
    return found[best[0]] if best else {}

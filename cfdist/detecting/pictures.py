"""Which pictures a person means: a file, a folder, a pattern, an archive or a URI."""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cfdist.command.run_folder import is_run_folder
from cfdist.errors import UserError, counted
from cfdist.files import walk
from cfdist.inputs import size_in_file
from cfdist.storage import (
    is_in_store,
    open_store,
    path_or_uri,
    place_of,
    place_of_file,
    read_head,
    size_of,
)
from cfdist.widerface.manifest import WorkItem

KEY = "input"
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif"),
    *(".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".ras"),
)
_REMEDY = (
    "give a picture, a folder, a pattern in quotes ('photos/*.jpg'), a zip archive, or a URI of a "
    "picture, folder or archive"
)


@dataclass(frozen=True)
class FoundPictures:
    """The pictures that a person means.

    Attributes:
        items: By name; an id is the picture's path within the folder that was given.
        refused: (name, reason) of those that cannot be worked on.
        others: How many other files are beside them.
    """

    items: tuple[WorkItem, ...]
    refused: tuple[tuple[str, str], ...]
    others: int


def find_pictures(given: str, use_damaged: bool = False, key: str = KEY) -> FoundPictures:
    """The pictures that a key such as `input` names, with those in folders inside.

    Hidden files, and the folders of this program's runs, are left out. What is named itself, or
    by a pattern with a suffix, is taken whatever that is.

    Raises:
        UserError: nothing is there, or it holds no picture.
        OSError: it cannot be read.
    """
    place = path_or_uri(given, key)
    try:
        if isinstance(place, str):
            found = _in_uri(place)
        elif place.is_file() and not zipfile.is_zipfile(place):
            _check_is_picture(f"{key}={given}", place)
            found = [(place.name, os.path.abspath(place), True)]
        elif place.is_file():
            found = _in_store(os.path.abspath(place))
        elif place.is_dir():
            found = list(_in_folder(place, place, {}))
        else:
            found = list(_fitting(f"{key}={given}", str(place)))
    except (OSError, UnicodeDecodeError) as error:  # the latter: a name behind a URI
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={given}: {reason}; {_REMEDY}") from None
    pictures = {
        name: (path, is_named)
        for name, path, is_named in sorted(found)
        if is_named or _is_one(name)
    }
    if not pictures:
        files = counted(len(found), "other file")
        others = f" ({files}, none with a suffix such as {', '.join(SUFFIXES[:4])})"
        raise UserError(
            f"{key}={given}: holds no picture{others if found else ' and no other file'}; {_REMEDY}"
        )
    refused = {name: _shown(name) for name in pictures if _shown(name) != name}
    items = [
        WorkItem(name, path, _size(path, is_named), use_damaged=use_damaged, is_upright=True)
        for name, (path, is_named) in pictures.items()
        if name not in refused
    ]
    reason = "its name has bytes that are no UTF-8; rename it"
    return FoundPictures(
        tuple(items),
        tuple((name, reason) for name in refused.values()),
        len({name for name, _, _ in found}) - len(pictures),
    )


def _check_is_picture(setting: str, path: Path) -> None:
    """Refuse a file that neither its name nor its content makes a picture, such as a film."""
    if not _is_one(path.name) and size_in_file(str(path)) is None:
        raise UserError(f"{setting}: is neither a picture nor a whole zip archive; {_REMEDY}")


_Found = tuple[str, str, bool]  # name, path or place, whether the person named it itself


def _is_one(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _shown(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")


def _size(path: str, is_named: bool) -> int:
    """The file's bytes; 0 if they cannot be asked for: reading it later gives the reason.

    They are not asked for where all files beside the one that was named would be listed for it.
    """
    try:
        return 0 if is_named and is_in_store(path) else size_of(path)
    except OSError:
        return 0


def _in_folder(folder: Path, base: Path, seen: dict[str, str]) -> Iterator[_Found]:
    """The files in a folder and those inside, named from `base`.

    `seen` holds the folders so far, by what they really are: links may lead back to them.
    """
    for parent, folders, names in walk(folder, follows_links=True):
        if not _is_new(parent, seen):
            folders.clear()
            continue
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        folders[:] = [one for one in folders if not is_run_folder(Path(parent, one))]
        for name in names:
            if not name.startswith("."):
                path = os.path.join(parent, name)
                yield Path(os.path.relpath(path, base)).as_posix(), os.path.abspath(path), False


def _is_new(folder: str, seen: dict[str, str]) -> bool:
    return seen.setdefault(os.path.realpath(folder), folder) == folder


def _fitting(setting: str, pattern: str) -> Iterator[_Found]:
    """The files that fit a pattern of the shell's, and the pictures in the folders that do.

    Raises:
        UserError: nothing fits.
    """
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), None)
    paths = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if fixed is None or not paths:
        what = "no such file or folder" if fixed is None else "no file or folder fits the pattern"
        raise UserError(f"{setting}: {what}; {_REMEDY}")
    if ".." in parts[fixed:]:  # the copies would lie in other folders
        raise UserError(f"{setting}: has .. after a wildcard; write it without")
    base, seen = Path(*parts[:fixed]), dict[str, str]()
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        name = path.relative_to(base)
        if "**" in parts and any(is_run_folder(base / one) for one in (name, *name.parents)):
            continue
        if path.is_dir():
            yield from _in_folder(path, base, seen)
        elif _is_new(str(path.parent), seen):
            # A pattern that names no suffix means the pictures among what fits.
            yield name.as_posix(), os.path.abspath(path), "." in parts[-1]


def _in_uri(uri: str) -> list[_Found]:
    if _is_one(uri):
        place = place_of_file(uri)
        read_head(place, 1)
        return [(uri.rpartition("/")[2], place, True)]
    return _in_store(uri)


def _in_store(root: str) -> list[_Found]:
    """The files of a zip archive or of a folder behind a URI."""
    return [(name, place_of(root, name), False) for name in _visible(open_store(root).sizes)]


def _visible(names: Iterable[str]) -> Iterator[str]:
    """The names without hidden parts, and without what macOS puts into archives."""
    for name in names:
        parts = PurePosixPath(name).parts
        if "__MACOSX" not in parts and not any(part.startswith(".") for part in parts):
            yield name

"""The two files of the validation set, as published: how each is checked and placed.

`WIDER_val.zip` holds 3226 pictures in 61 event folders, `eval_tools.zip` the four .mat files.
Either may also lie unpacked in the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cfdist.download.transfer import Transfer
from cfdist.errors import UserError
from cfdist.files import atomic_write, digest_of, read_file, sha256_of, write_text
from cfdist.monitoring.terminal import say
from cfdist.storage import open_store
from cfdist.widerface.ground_truth import (
    FACES_FILE,
    WIDER_VAL_PICTURES,
    GroundTruth,
    load_ground_truth,
)
from cfdist.widerface.manifest import build_manifest

PICTURES, GROUND_TRUTH = "WIDER_val.zip", "eval_tools.zip"

TERMS = """\
WIDER FACE is for research, not for commercial use: its authors' copy has the licence
CC BY-NC-ND 4.0 (https://huggingface.co/datasets/CUHK-CSE/wider_face). Cite: Yang, Luo,
Loy and Tang, WIDER FACE: A Face Detection Benchmark, CVPR 2016
(http://shuoyang1213.me/WIDERFACE/)."""

_EVENTS = 61
# Faces that count as easy, medium and hard, and all boxes, in the files of 2017.
_COUNTED, _BOXES = (7211, 13319, 31958), 39708

# Where each lies unpacked, relative to the folder.
_UNPACKED = {
    PICTURES: ("WIDER_val", "images"),
    GROUND_TRUTH: ("eval_tools/ground_truth", "ground_truth", "eval_tools", "."),
}


@dataclass(frozen=True)
class Published:
    """One of the two files, and what is known of it.

    Attributes:
        name: `PICTURES` or `GROUND_TRUTH`.
        size: Its bytes; `None`: unknown.
        digests: Algorithm of `hashlib` -> hexadecimal digest; those that are known.
    """

    name: str
    size: int | None
    digests: Mapping[str, str]

    def find(self, folder: Path) -> Path | None:
        """The file in a folder, or what lies there unpacked."""
        if (folder / self.name).is_file():
            return folder / self.name
        inner = [folder / one for one in _UNPACKED[self.name]]
        mark = "images" if self.name == PICTURES else FACES_FILE
        inner = [one for one in inner if (one / mark).exists() or one == folder / "images"]
        return next((one for one in inner if one.is_dir()), None)

    def check(self, path: Path) -> None:
        """Check a file, or what is unpacked, as far as it can be checked alone.

        Raises:
            UserError: it is damaged or another one.
        """
        if path.is_file():
            self._check_bytes(path)
        if self.name == GROUND_TRUTH:
            _check_ground_truth(path)
        elif path.is_file():
            _check_pictures(path, reads_all=not self.digests)

    def _check_bytes(self, path: Path) -> None:
        if self.size is not None and path.stat().st_size != self.size:
            raise self._another(path, f"{path.stat().st_size} bytes, expected {self.size}")
        wanted = {**self.digests, **_remembered(path)}
        for algorithm, digest in wanted.items():
            if (found := digest_of(path, algorithm)) != digest.lower():
                raise self._another(path, f"{algorithm} {found}, expected {digest}")

    def _another(self, path: Path, what: str) -> UserError:
        keys = "; for a repacked one set download.size, md5 and sha256 to its own, or to null"
        return UserError(f"{path}: {what}{keys if self.digests else ''}")

    def place(
        self, folder: Path, given: Path | None, mirrors: Sequence[str], stall_s: float
    ) -> Path:
        """Have the file in a folder, checked: found there, taken from another one, or fetched.

        Args:
            folder: Where it goes.
            given: A folder in which it may be already.
            mirrors: Addresses of this file, or of folders that hold it.
            stall_s: See `Transfer`.

        Returns:
            The file, or what lies there unpacked.

        Raises:
            UserError: what is there is damaged or another one.
            StoppedError: no mirror gives it.
        """
        if found := self.find(folder):
            self._check_or_name(found, "move it away, and call this again")
            say(f"{self.name}: there already, {found}")
            return found
        target = folder / self.name
        source = self.find(given) if given else None
        if source:
            self._check_or_name(source, "fetch it anew: leave download.from out")
            target = _take(source, folder)
            say(f"{self.name}: {source}, now {target}")
        else:
            if given:
                say(f"{self.name}: not in {given}")
            addresses = [one for mirror in mirrors if (one := self._address(mirror))]
            if not addresses:
                raise UserError(
                    f"download.mirrors: none is for {self.name}; add an address that ends in it, "
                    "or that of the folder that holds it, ending in /"
                )
            known = bool(self.digests)
            Transfer(target, addresses, self.check, self.size, known, stall_s).run()
        if target.is_file():
            _remember(target)
        return target

    def _check_or_name(self, path: Path, remedy: str) -> None:
        try:
            self.check(path)
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from None

    def _address(self, mirror: str) -> str | None:
        """A mirror's address of this file; `None` if it is the other one's."""
        if mirror.endswith("/"):
            return mirror + self.name
        return mirror if Path(urlsplit(mirror).path).name == self.name else None


def check_together(pictures: Path, truth: Path) -> None:
    """Check that each picture of the ground truth is there.

    Raises:
        UserError: one is not.
    """
    faces = load_ground_truth(truth)
    manifest = build_manifest(pictures, faces)
    empty = sum(item.size == 0 for item in manifest.items)
    if manifest.absent or empty:
        raise UserError(
            f"{pictures}: {manifest.absent + empty} of the {len(faces)} pictures are missing or "
            "empty; move it away and call this again. (A part of the set needs no download: name "
            "it, dataset.root=...)"
        )


@contextlib.contextmanager
def given_back(files: Sequence[Published], folder: Path, given: Path | None) -> Iterator[None]:
    """If the `with` block fails, remove what it has placed in a folder from another, `given`."""
    before = {*folder.iterdir()}
    try:
        yield
    except BaseException:
        for one in files:
            placed = one.find(folder)
            if placed and placed not in {*before, folder} and given and one.find(given):
                placed.unlink()
                Path(f"{placed}.sha256").unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other command download into this folder in the `with` block.

    Raises:
        UserError: one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"download.to={folder}: another command downloads into it; wait for it, or choose "
            "another folder"
        ) from None
    except OSError:  # no locks here
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _check_ground_truth(path: Path) -> None:
    faces = load_ground_truth(path)
    counted = tuple(int(sum(one.counted[row].sum() for one in faces.values())) for row in range(3))
    found = (*_shape(faces), counted, sum(len(one.boxes) for one in faces.values()))
    expected = (WIDER_VAL_PICTURES, _EVENTS, _COUNTED, _BOXES)
    for what, there, wanted in zip(
        ("pictures", "events", "faces (easy, medium, hard)", "boxes"), found, expected, strict=True
    ):
        if there != wanted:
            raise UserError(f"{path}: {there} {what}, expected {wanted}; not the validation set's")


def _shape(faces: GroundTruth) -> tuple[int, int]:
    return len(faces), len({id.partition("/")[0] for id in faces})


def _check_pictures(path: Path, reads_all: bool) -> None:
    """Check an archive's list of files, and if nobody knows its digest, each file in it.

    Raises:
        UserError: it is damaged, or holds other pictures.
    """
    try:
        store = open_store(str(path))
        names = [name for name in store.sizes if name.lower().endswith(".jpg")]
        events = {name.split("/")[-2] for name in names if "/" in name}
        if (len(names), len(events)) != (WIDER_VAL_PICTURES, _EVENTS):
            raise UserError(
                f"{path}: {len(names)} pictures in {len(events)} folders, expected "
                f"{WIDER_VAL_PICTURES} in {_EVENTS}"
            )
        for name in names if reads_all else ():
            store.read(name)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _take(source: Path, folder: Path) -> Path:
    """Link a file, or a folder, into another folder; a file on another disk is copied."""
    if source.is_dir():
        is_truth = (source / FACES_FILE).exists()
        target = folder / ("ground_truth" if is_truth else source.name)
        target.symlink_to(source.resolve())
        return target
    target = folder / source.name
    try:
        os.link(source.resolve(), target)
    except OSError:
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
    return target


def _remembered(path: Path) -> dict[str, str]:
    """The digest that `_remember` has noted for a file, if it has."""
    with contextlib.suppress(OSError, UnicodeDecodeError, IndexError):
        return {"sha256": read_file(f"{path}.sha256", 1 << 12).decode().split()[0]}
    return {}


def _remember(path: Path) -> None:
    """Note a file's digest beside it, as `sha256sum --check` reads it."""
    digest = sha256_of(path)
    write_text(f"{path}.sha256", f"{digest}  {path.name}\n")
    say(f"{path.name}: {path.stat().st_size} bytes, sha256 {digest}")

"""Letterboxed pictures in Ray's object store, for a further pass or a further member of a sweep."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfdist.distributed import cluster
from cfdist.errors import UserError
from cfdist.machine import available_memory
from cfdist.widerface.manifest import Manifest, WorkItem

# Of Ray's object store: what is left is for results on their way, and keeps it from spilling.
_STORE_SHARE = 0.6
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class KeptPictures:
    """What one chunk's reading left: one object of the store.

    Attributes:
        sizes: (n, 2) int32 width and height before letterboxing, pixels.
        warped: (n, H, W, 3) u8, BGR, letterboxed.
    """

    sizes: NDArray[np.int32]
    warped: NDArray[np.uint8]


@dataclass(frozen=True)
class KeptRow:
    """One picture of a `KeptPictures` that a device has mapped.

    Attributes:
        pictures: The object.
        row: The picture's row in it.
    """

    pictures: KeptPictures
    row: int

    def copy_into(self, row: NDArray[np.uint8]) -> tuple[int, int]:
        """Copy the (H, W, 3) picture; returns its width and height before letterboxing."""
        np.copyto(row, self.pictures.warped[self.row])
        width, height = self.pictures.sizes[self.row]
        return int(width), int(height)


# Where a kept picture is: the store's reference to a `KeptPictures`, and the row in it.
Place = tuple[Any, int]


def resolve_places(places: Sequence[Place | None]) -> list[KeptRow | None]:
    """Map the objects of the store that the places are in, without copying them."""
    import ray

    references = list({place[0] for place in places if place is not None})
    objects = dict(zip(references, ray.get(references), strict=True))
    return [place and KeptRow(objects[place[0]], place[1]) for place in places]


@dataclass
class PictureCache:
    """The driver's register of what is kept, and the bound on it.

    The driver owns the objects: they outlive the devices that made them.

    Attributes:
        height: Rows of the letterboxed pictures, pixels.
        width: Columns of the letterboxed pictures, pixels.
        limit: Bytes that may be kept.
        used: Bytes that are kept, or promised to chunks on their way.
    """

    height: int
    width: int
    limit: int
    used: int = 0
    _places: dict[str, Place] = field(default_factory=dict)
    _promised: set[str] = field(default_factory=set)

    @property
    def picture_bytes(self) -> int:
        """What one picture takes."""
        return self.height * self.width * 3

    def __len__(self) -> int:
        """How many pictures are kept."""
        return len(self._places)

    def places(self, items: Iterable[WorkItem]) -> list[Place | None]:
        """For each item the reference and the row of its picture; `None` where it is not kept."""
        return [self._places.get(item.path) for item in items]

    def reserve(self, items: Sequence[WorkItem]) -> list[int]:
        """Which of a chunk's pictures are to be kept; their room is taken.

        Those that are not kept yet nor on their way, each once, as far as there is room.
        """
        wanted = []
        for i, item in enumerate(items):
            is_new = item.path not in self._places and item.path not in self._promised
            if is_new and self.used + self.picture_bytes <= self.limit:
                self.used += self.picture_bytes
                self._promised.add(item.path)
                wanted.append(i)
        return wanted

    def add(
        self, items: Sequence[WorkItem], wanted: Sequence[int], read: Sequence[int], reference: Any
    ) -> None:
        """Note what a chunk's reading left.

        Args:
            items: The chunk.
            wanted: What `reserve` gave for it.
            read: Row by row of the object, which of the items it is.
            reference: The object's reference in Ray's store, a `KeptPictures`.
        """
        self.used -= (len(wanted) - len(read)) * self.picture_bytes
        self._promised -= {items[i].path for i in wanted}
        for row, i in enumerate(read):
            self._places[items[i].path] = (reference, row)

    def forget(self, items: Iterable[WorkItem]) -> None:
        """Give up the objects that these pictures are in, with all that is in them."""
        lost = {self._places[item.path][0] for item in items if item.path in self._places}
        gone = [path for path, (reference, _) in self._places.items() if reference in lost]
        for path in gone:
            del self._places[path]
        self.used -= len(gone) * self.picture_bytes


def choose_cache(
    cache: bool | str,
    limit_gb: float | None,
    manifest: Manifest,
    height: int,
    width: int,
    needed: int = 0,
) -> PictureCache | None:
    """The cache of a run: that of its sweep, one of its own, or none.

    Args:
        cache: "auto" (in a sweep, what fits), true (also for the passes of a single run, and all
            must fit) or false.
        limit_gb: Gigabytes that may be kept; `None` for 60 % of the object store, as far as half
            of the memory goes that the devices leave.
        manifest: The run's pictures.
        height: Rows of the letterboxed pictures, pixels.
        width: Columns of the letterboxed pictures, pixels.
        needed: Bytes that the devices take.

    Raises:
        UserError: the object store is smaller than the limit, or the pictures do not fit.
    """
    sweep = cluster.kept_session()
    if not cache or (cache == "auto" and sweep is None):
        return None
    pictures = sweep.pictures if sweep else None
    if pictures is not None and (pictures.height, pictures.width) != (height, width):
        cluster.give_up_kept_pictures()  # of another input size they are of no use
        pictures = None
    if pictures is None:
        pictures = PictureCache(height, width, _limit_bytes(limit_gb, needed))
    elif limit_gb is not None:
        pictures.limit = _limit_bytes(limit_gb, needed)
    if cache is True:
        _refuse_too_many(manifest, pictures)
    if sweep:
        sweep.pictures = pictures
    return pictures


def _refuse_too_many(manifest: Manifest, pictures: PictureCache) -> None:
    places = pictures.places(manifest.pictures)
    wanted = places.count(None) * pictures.picture_bytes
    left = pictures.limit - pictures.used
    if wanted > left:
        already = f" beside the {pictures.used / 1e9:.2f} GB kept already" if pictures.used else ""
        raise UserError(
            f"preprocess.cache=true: {places.count(None)} pictures take {wanted / 1e9:.2f} GB, "
            f"{left / 1e9:.2f} GB may be kept{already}; use "
            "preprocess.cache=auto, which keeps what fits"
        )


def _limit_bytes(limit_gb: float | None, needed: int) -> int:
    import ray

    store = ray.cluster_resources().get("object_store_memory", 0)
    if limit_gb is None:
        # What the store has of pictures that were given up is there for others.
        reusable = cluster.kept_bytes()
        shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else store
        shared += reusable
        left = max(0, available_memory() + reusable - needed)
        return int(min(_STORE_SHARE * store, _STORE_SHARE * shared, _MEMORY_SHARE * left))
    if limit_gb * 1e9 > store:
        raise UserError(
            f"preprocess.cache_gb={limit_gb:g}: Ray's object store has {store / 1e9:.1f} GB; "
            "choose less, or attach to a cluster that was started with more (ray start "
            "--object-store-memory=BYTES)"
        )
    return int(limit_gb * 1e9)

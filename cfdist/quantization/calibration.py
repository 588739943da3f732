"""The pictures that a quantisation is calibrated with: none of them is evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cfdist.detecting.pictures import find_pictures
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import PictureError, letterbox_into, picture_content
from cfdist.sample import SAMPLE_VERSION
from cfdist.sample.pictures import further_picture
from cfdist.widerface.manifest import WorkItem

KEY = "quantize.calibration"
SAMPLE = "further pictures of the embedded sample set's kind"


@dataclass(frozen=True)
class CalibrationSet:
    """Pictures for a calibration.

    Attributes:
        source: Where they come from, for people.
        items: The picture files; empty if the pictures are drawn.
        count: How many pictures there are.
    """

    source: str
    items: Sequence[WorkItem]
    count: int

    def letterboxed(self, spec: ModelSpec) -> Iterator[NDArray[np.uint8]]:
        """Each picture as a batch of one: (1, H, W, 3) u8, BGR; the array is used again.

        Raises:
            UserError: a file cannot be used.
        """
        row = np.empty((1, spec.height, spec.width, 3), np.uint8)
        for number in range(self.count):
            if not self.items:
                pixels = further_picture(number).pixels
                letterbox_into(np.dstack([pixels, np.full_like(pixels[..., :1], 255)]), row[0])
                yield row
                continue
            item = self.items[number]
            try:
                item.fill(row[0])
            except PictureError as error:
                raise UserError(f"{KEY}: {item.path}: {error}; remove it") from None
            yield row

    def digest(self) -> str:
        """SHA-256 of the files' SHA-256, a line each; of drawn pictures, of what draws them."""
        lines = [_content_digest(item) for item in self.items] or [
            f"sample set {SAMPLE_VERSION}, the first {self.count} further pictures"
        ]
        return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def find_calibration(
    given: str | None, count: int, evaluated: Sequence[WorkItem]
) -> CalibrationSet:
    """The pictures to calibrate with: `count` of those given, from all over their order.

    Args:
        given: A folder, pattern, archive or URI of pictures; `None`: pictures are drawn that are
            of the sample set's kind and not in it.
        count: How many are wanted; where there are fewer, all are taken.
        evaluated: The pictures that the quantised model is then tried on.

    Raises:
        UserError: there is no picture, or an evaluated one is among them.
    """
    if given is None:
        return CalibrationSet(SAMPLE, (), count)
    found = find_pictures(given, key=KEY)
    if found.refused:
        name, reason = found.refused[0]
        raise UserError(f"{KEY}={given}: {name}: {reason}")
    _refuse_evaluated(given, found.items, evaluated)
    there = len(found.items)
    chosen = [found.items[i * there // count] for i in range(count)] if there > count else None
    return CalibrationSet(given, chosen or found.items, min(count, there))


def _refuse_evaluated(given: str, items: Sequence[WorkItem], evaluated: Sequence[WorkItem]) -> None:
    """Refuse pictures that the model is then tried on: by their names, or by their contents."""
    names = {PurePosixPath(item.id).name.lower(): item.id for item in evaluated}
    by_size: dict[int, list[WorkItem]] = {}
    for item in evaluated:
        by_size.setdefault(item.size, []).append(item)
    digests: dict[str, str] = {}  # of the evaluated pictures that have the size of a given one
    for size in {item.size for item in items} & by_size.keys():
        digests |= {_content_digest(item): item.id for item in by_size[size]}
    held = []
    for item in items:
        same = names.get(PurePosixPath(item.id).stem.lower())
        if same is None and item.size in by_size:
            same = digests.get(_content_digest(item))
        if same is not None:
            held.append((item.id, same))
    if held:
        name, same = held[0]
        raise UserError(
            f"{KEY}={given}: holds {len(held)} of the {len(evaluated)} pictures that the AP is "
            f"then computed on, such as {name} ({same}), which would flatter it; give other "
            "pictures, or take those out"
        )


def _content_digest(item: WorkItem) -> str:
    try:
        return hashlib.sha256(picture_content(item.path)).hexdigest()
    except PictureError:  # it is refused, or fails, when it is used
        return item.path

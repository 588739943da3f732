"""The device of `job=detect`: a detector whose detections go to the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.detections import Detections
from cfdist.devices.base import Reasons
from cfdist.devices.detector import Detector
from cfdist.devices.reader import Source


@dataclass(frozen=True)
class FoundChunk:
    """What was found in the pictures of a chunk.

    Attributes:
        found: One record a picture, failed ones included.
        doubtful: (id, reason) of the pictures for which the device may be the reason, see
            `ChunkReport`; the others are in `found`.
    """

    found: list[Detections]
    doubtful: tuple[tuple[str, str], ...] = ()

    def judged(self, failures: Reasons, doubtful: Reasons) -> FoundChunk:
        """See `ChunkReport.judged`."""
        failed = [Detections(id, error=reason) for id, reason in failures]
        return FoundChunk(self.found + failed, doubtful)

    @property
    def keys(self) -> tuple[str, ...]:
        """See `ChunkReport.keys`."""
        return tuple(one.id for one in self.found)

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(id, reason) of the pictures that failed."""
        return tuple((one.id, one.error) for one in self.found if one.error is not None)


class FaceFinder:
    """A detector that keeps the faces from a score on; keeps the `Device` protocol."""

    def __init__(
        self, model: BackendModel, settings: DeviceSettings, readers: int, threshold: float
    ) -> None:
        """Remember what to load."""
        self._detector = Detector(model, settings, readers)
        self._threshold = threshold
        self.warm_up, self.report = self._detector.warm_up, self._detector.report
        self.close = self._detector.close

    def process(self, chunk: Sequence[Source]) -> FoundChunk:
        """Detect the faces of some pictures."""
        found = self._detector.process(chunk)
        doubtful = {one.id: str(one.error) for one in found if one.is_doubtful}
        sound = [above(one, self._threshold) for one in found if one.id not in doubtful]
        return FoundChunk(sound, tuple(doubtful.items()))


def above(found: Detections, threshold: float) -> Detections:
    """The faces whose score is at least the threshold."""
    keep = found.scores >= threshold
    return replace(
        found,
        boxes=found.boxes[keep],
        scores=found.scores[keep],
        landmarks=found.landmarks[keep],
    )

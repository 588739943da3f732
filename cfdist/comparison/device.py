"""A device that runs the same pictures through two models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.comparison.differences import HEADS, HeadDifference, head_difference
from cfdist.decode import HeadMaps, merge_views
from cfdist.detections import Detections
from cfdist.devices.base import DeviceReport, Reasons
from cfdist.devices.detector import decode_pictures, load, pictures_at_once, report_of
from cfdist.devices.reader import Source
from cfdist.devices.runner import Inferred, Runner

SIDES = ("reference", "candidate")


@dataclass(frozen=True)
class ComparedChunk:
    """What two models found in the same pictures.

    Attributes:
        reference: The reference's detections.
        candidate: The candidate's, of the same pictures in the same order.
        heads: Head name -> difference of the maps, over the pictures whose maps are finite in both
            models; empty if a graph gives peaks only.
        doubtful: (id, reason) of the pictures for which the device may be the reason, see
            `ChunkReport`; the others are in the lists.
    """

    reference: list[Detections]
    candidate: list[Detections]
    heads: dict[str, HeadDifference]
    doubtful: tuple[tuple[str, str], ...] = ()

    def judged(self, failures: Reasons, doubtful: Reasons) -> ComparedChunk:
        """See `ChunkReport.judged`."""
        failed = [Detections(id, error=reason) for id, reason in failures]
        both = (self.reference + failed, self.candidate + failed)
        return ComparedChunk(*both, self.heads, doubtful)

    @property
    def keys(self) -> tuple[str, ...]:
        """See `ChunkReport.keys`."""
        return tuple(one.id for one in self.reference)

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """(id, reason) of the pictures that failed."""
        pairs = zip(self.reference, self.candidate, strict=True)
        return tuple((a.id, str(a.error or b.error)) for a, b in pairs if a.error or b.error)


class ComparingDevice:
    """A reader and two runners; keeps the `Device` protocol."""

    def __init__(
        self,
        reference: BackendModel,
        candidate: BackendModel,
        settings: DeviceSettings,
        readers: int,
    ) -> None:
        """Remember what to load; the inputs of both models have the same size."""
        self._models = (reference, candidate)
        self._settings = replace(settings, needs_heads=True)
        self._readers = readers

    def warm_up(self) -> None:
        """See `Device.warm_up`."""
        reference, candidate = self._models
        group = max(model.capabilities.group for model in self._models)
        first, self._reader = load(reference, self._settings, self._readers, group)
        rows = pictures_at_once(reference.spec, group)
        self._runners = (first, Runner(candidate, self._settings, rows))
        for runner in self._runners:
            runner.warm_up()

    def process(self, chunk: Sequence[Source]) -> ComparedChunk:
        """Read a chunk once, and infer it twice."""
        found: tuple[list[Detections], list[Detections]] = ([], [])
        heads: list[dict[str, HeadDifference]] = []
        specs = [model.spec for model in self._models]
        for pictures in self._reader.portions(chunk, specs[0].views):
            both = [
                replace(inferred, error=f"the {side}: {inferred.error}")
                for side, runner in zip(SIDES, self._runners, strict=True)
                for inferred in [runner.infer(pictures.letterboxed)]
            ]
            heads.append(_compare_outputs(*both))
            for side, inferred, spec in zip(found, both, specs, strict=True):
                side += decode_pictures(pictures, inferred, spec)
        reference, candidate = map(merge_views, found, specs)
        pairs = [*zip(reference, candidate, strict=True)]
        doubtful = {
            one.id: str(one.error) for pair in pairs for one in pair[::-1] if one.is_doubtful
        }
        sound = [pair for pair in pairs if pair[0].id not in doubtful]
        return ComparedChunk(
            [one for one, _ in sound],
            [one for _, one in sound],
            _summed(heads),
            tuple(doubtful.items()),
        )

    def report(self) -> DeviceReport:
        """See `Device.report`; the figures are the reference's."""
        return report_of(self._runners[0], self._reader, self._models[0].spec)

    def close(self) -> None:
        """See `Device.close`."""
        self._reader.close()
        for runner in self._runners:
            runner.close()


def _summed(heads: Sequence[dict[str, HeadDifference]]) -> dict[str, HeadDifference]:
    """The differences of all portions; of one without pictures there are none."""
    total: dict[str, HeadDifference] = defaultdict(HeadDifference)
    for one in heads:
        for name, difference in one.items():
            total[name] += difference
    return total


def _compare_outputs(reference: Inferred, candidate: Inferred) -> dict[str, HeadDifference]:
    """The differences of the head maps; empty if a graph gives peaks only."""
    total: dict[str, HeadDifference] = defaultdict(HeadDifference)
    is_finite = reference.is_finite & candidate.is_finite
    first = 0
    for a, b in zip(reference.outputs, candidate.outputs, strict=True):
        if not isinstance(a, HeadMaps) or not isinstance(b, HeadMaps):
            return {}
        chosen = is_finite[first : first + len(a.hm)]
        first += len(a.hm)
        a, b = a.select(chosen), b.select(chosen)
        for name in HEADS:
            total[name] += head_difference(getattr(a, name), getattr(b, name))
    return total

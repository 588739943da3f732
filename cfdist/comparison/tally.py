"""What the compared chunks add up to, and whether that is within the tolerances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cfdist.comparison.device import SIDES, ComparedChunk
from cfdist.comparison.differences import BoxAgreement, HeadDifference, compare_boxes
from cfdist.config import CompareConfig
from cfdist.detections import Detections
from cfdist.report.results import chosen_first
from cfdist.widerface.ground_truth import PictureTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, rows

MOST_APART = 12  # pictures that differ most, kept with their boxes


@dataclass(frozen=True, eq=False)
class ApartPicture:
    """A picture in which the models find different faces.

    Attributes:
        reference: The reference's detections.
        candidate: The candidate's.
        boxes: How many boxes the models share.
    """

    reference: Detections
    candidate: Detections
    boxes: BoxAgreement

    @property
    def alone(self) -> int:
        """Boxes that only one of the models has."""
        boxes = self.boxes
        return boxes.reference - boxes.found + boxes.candidate - boxes.confirmed

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts the pictures that differ most to the front; no two are equal."""
        return (-self.alone, -self.boxes.largest_score_difference, self.reference.id)


@dataclass
class Tally:
    """Sums over the compared pictures.

    Attributes:
        truth: Picture id -> its faces.
        protocol: The chosen protocol, a key of `STYLES`: boxes are rounded in its style before they
            are scored by every protocol.
        heads: Head name -> difference; empty if a graph gives peaks only.
        boxes: How many boxes the models share.
        failures: Picture id -> why one of the models has no detections for it.
        damaged: Picture id -> what is wrong with its file.
        metrics: Side -> its metric.
        apart: The pictures that differ most, those with the largest difference first.
    """

    truth: Mapping[str, PictureTruth]
    protocol: str
    heads: dict[str, HeadDifference] = field(default_factory=lambda: defaultdict(HeadDifference))
    boxes: BoxAgreement = field(default_factory=BoxAgreement)
    failures: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, WiderFaceMetric] = field(
        default_factory=lambda: {side: WiderFaceMetric() for side in SIDES}
    )
    apart: list[ApartPicture] = field(default_factory=list)

    def add(self, chunk: ComparedChunk) -> int:
        """Take in a chunk; returns how many of its pictures have failed."""
        for name, difference in chunk.heads.items():
            self.heads[name] += difference
        before = len(self.failures)
        for pair in zip(chunk.reference, chunk.candidate, strict=True):
            self._add_picture(pair)
        return len(self.failures) - before

    def _add_picture(self, pair: tuple[Detections, Detections]) -> None:
        if pair[0].damage is not None:
            self.damaged[pair[0].id] = pair[0].damage
        error = next((found.error for found in pair if found.error is not None), None)
        if error is not None:
            self.failures[pair[0].id] = error
            return
        agreement = compare_boxes(*pair)
        self.boxes += agreement
        self._note_apart(ApartPicture(*pair, agreement))
        for metric, found in zip(self.metrics.values(), pair, strict=True):
            table = rows(found.boxes, found.scores, STYLES[self.protocol])
            metric.update(self.truth[found.id], table[:, :4], table[:, 4])

    def _note_apart(self, picture: ApartPicture) -> None:
        """Keep a picture if it is among those that differ most, whatever the order of arrival."""
        if picture.alone or picture.boxes.largest_score_difference:
            self.apart = sorted([*self.apart, picture], key=lambda one: one.order)[:MOST_APART]

    def summary(self, limits: CompareConfig) -> dict[str, Any]:
        """The results' `comparison` section; of each model it holds the APs only.

        Args:
            limits: The tolerances.
        """
        aps = {
            side: chosen_first(metric.compute(), self.protocol)
            for side, metric in self.metrics.items()
        }
        ap_difference = {
            protocol: {name: aps["candidate"][protocol][name] - ap[name] for name in ap}
            for protocol, ap in aps["reference"].items()
        }
        heads = {
            name: {"max": d.largest, "mean": d.mean, "cosine": d.cosine}
            for name, d in self.heads.items()
        }
        boxes = {
            "found_share": self.boxes.found_share,
            "confirmed_share": self.boxes.confirmed_share,
            "mean_score_difference": self.boxes.score_difference / max(1, self.boxes.found),
        }
        within = {
            "ap": all(
                abs(value) <= limits.ap for ap in ap_difference.values() for value in ap.values()
            ),
            "boxes": min(self.boxes.found_share, self.boxes.confirmed_share) >= limits.boxes,
            "cosine": all(head["cosine"] >= limits.cosine for head in heads.values()),
        }
        return {
            "ap_difference": ap_difference,
            "heads": heads or None,
            "boxes": asdict(self.boxes) | boxes,
            "within": within,
            "within_tolerance": all(within.values()),
            **{side: {"ap": ap} for side, ap in aps.items()},
        }

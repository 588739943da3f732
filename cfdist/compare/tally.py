"""What the compared chunks add up to, and whether that is within the tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cfdist.compare.device import ComparedChunk
from cfdist.compare.differences import BoxAgreement, HeadDifference, compare_boxes
from cfdist.config import CompareConfig
from cfdist.detections import Detections
from cfdist.widerface.ground_truth import DIFFICULTIES, PictureTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, rows

Aps = dict[str, dict[str, float]]  # protocol -> difficulty -> AP, a fraction


@dataclass
class Tally:
    """Sums over the compared pictures.

    Attributes:
        truth: Picture id -> its faces.
        style: How boxes are rounded before they are scored, a key of `STYLES`.
        heads: Head name -> difference.
        has_heads: Whether all outputs were head maps.
        boxes: How many boxes the models share.
        failures: Picture id -> why one of the models has no detections for it.
        metrics: Those of the reference and of the candidate.
    """

    truth: Mapping[str, PictureTruth]
    style: str
    heads: dict[str, HeadDifference] = field(default_factory=dict)
    has_heads: bool = True
    boxes: BoxAgreement = field(default_factory=BoxAgreement)
    failures: dict[str, str] = field(default_factory=dict)
    metrics: tuple[WiderFaceMetric, WiderFaceMetric] = field(
        default_factory=lambda: (WiderFaceMetric(), WiderFaceMetric())
    )

    def add(self, chunk: ComparedChunk) -> int:
        """Take in a chunk; returns how many of its pictures have failed."""
        if chunk.heads is None:
            self.has_heads = False
        for name, difference in (chunk.heads or {}).items():
            self.heads[name] = self.heads.get(name, HeadDifference()) + difference
        before = len(self.failures)
        for pair in zip(chunk.reference, chunk.candidate, strict=True):
            self._add_picture(pair)
        return len(self.failures) - before

    def _add_picture(self, pair: tuple[Detections, Detections]) -> None:
        error = next((found.error for found in pair if found.error is not None), None)
        if error is not None:
            self.failures[pair[0].id] = error
            return
        self.boxes += compare_boxes(*pair)
        for metric, found in zip(self.metrics, pair, strict=True):
            table = rows(found.boxes, found.scores, STYLES[self.style])
            metric.update(self.truth[found.id], table[:, :4], table[:, 4])

    def average_precisions(self) -> tuple[Aps, Aps]:
        """The APs of the reference and of the candidate."""
        reference, candidate = (metric.compute() for metric in self.metrics)
        return reference, candidate

    def summary(self, reference: Aps, candidate: Aps, limits: CompareConfig) -> dict[str, Any]:
        """The results' `comparison` section, without the two models' own entries.

        Args:
            reference: The reference's APs.
            candidate: The candidate's APs.
            limits: The tolerances.
        """
        ap_difference = {
            protocol: {name: candidate[protocol][name] - ap[name] for name in DIFFICULTIES}
            for protocol, ap in reference.items()
        }
        heads = {
            name: {"max": d.largest, "mean": d.mean, "cosine": d.cosine}
            for name, d in (self.heads if self.has_heads else {}).items()
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
            "boxes": asdict(self.boxes)
            | {
                "found_share": self.boxes.found_share,
                "confirmed_share": self.boxes.confirmed_share,
                "mean_score_difference": self.boxes.score_difference / max(1, self.boxes.found),
            },
            "within": within,
            "within_tolerance": all(within.values()),
        }

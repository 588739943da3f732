"""What the page of a comparison shows: figures, curves, and the pictures that differ most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from cfdist.comparison.device import SIDES
from cfdist.comparison.differences import MATCH_IOU, MATCH_SCORE, matched_boxes
from cfdist.comparison.tally import ApartPicture, Tally
from cfdist.detections import Detections
from cfdist.report.page.gallery import Drawn, Entry, Gallery, Thumbnails
from cfdist.report.page.quality import curve_chart
from cfdist.report.page.run import OwnParts
from cfdist.report.page.tables import Table, count, number, percent, scientific, text
from cfdist.widerface.analysis import Analysis
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS

KEY = {
    "face": f"box that both models have (IoU {MATCH_IOU})",
    "missed": "box that only this model has",
}


def comparison_parts(
    comparison: Mapping[str, Any], tally: Tally, places: Mapping[str, str]
) -> OwnParts:
    """The parts, from the results' section `comparison`, the sums, and where the pictures are."""
    tables = [_ap_table(comparison), box_table(comparison["boxes"]), _limit_table(comparison)]
    if comparison["heads"]:
        tables.append(_head_table(comparison["heads"]))
    return OwnParts(tables, curves(tally), KEY, [gallery_of(tally, places, thumbnails())])


def thumbnails() -> Thumbnails:
    """Makes the drawings of all galleries of a page."""
    return Thumbnails(side=480)


def gallery_of(
    tally: Tally, places: Mapping[str, str], drawing: Thumbnails, title: str = "", **names: str
) -> Gallery:
    """The pictures that differ most; `names` are those of the sides, if they have others."""
    left, right = (names.get(side, side) for side in SIDES)
    return Gallery(
        f"The pictures that differ most{title}",
        f"Both models' boxes with a score of at least {MATCH_SCORE}: the {left}'s at the left, the "
        f"{right}'s at the right. The pictures with the most boxes of one model alone come first.",
        [*_entries(tally, places, drawing, left, right)],
        is_wide=True,
    )


def curves(tally: Tally, title: str = "", **names: str) -> list[Markup]:
    """Precision over recall of both models; `names` as for `gallery_of`."""
    analyses = {
        side: Analysis(tally.truth, metric.matched(), tally.protocol)
        for side, metric in tally.metrics.items()
    }
    how = PROTOCOLS[tally.protocol].title
    return [
        curve_chart(
            f"Precision over recall of the {difficulty} faces, {how}{title}",
            {names.get(side, side): one.curve(difficulty) for side, one in analyses.items()},
        )
        for difficulty in DIFFICULTIES
    ]


def layer_parts(comparison: Mapping[str, Any]) -> OwnParts:
    """The part of a comparison by layers: every tensor."""
    rows = [
        [
            text(one["tensor"]),
            text(one["operator"]),
            text("x".join(map(str, one["shape"]))),
            scientific(one["max"]),
            scientific(one["relative"]),
            number(one["cosine"], 8),
            text("" if one["within"] else "PAST"),
        ]
        for one in comparison["layers"]
    ]
    columns = ("tensor", "operator", "shape", "largest difference", "relative", "cosine", "verdict")
    caption = f"Tensors, candidate against reference: {comparison['matched']}"
    return OwnParts([Table(caption, columns, rows)])


def _ap_table(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for protocol, apart in comparison["ap_difference"].items():
        title = PROTOCOLS[protocol].title
        for side in SIDES:
            ap = comparison[side]["ap"][protocol]
            rows.append([text(f"{title}, {side}"), *(percent(ap[name]) for name in DIFFICULTIES)])
        cells = [percent(apart[name], 3) for name in DIFFICULTIES]
        rows.append([text(f"{title}, difference"), *cells])
    return Table("WIDER FACE AP of both models", ("protocol, model", *DIFFICULTIES), rows, False)


def box_table(boxes: Mapping[str, Any], title: str = "", **names: str) -> Table:
    """How many boxes both models have; `names` as for `gallery_of`."""
    left, right = (names.get(side, side) for side in SIDES)
    rows = [
        [text(name), count(boxes[of]), count(boxes[both]), percent(boxes[f"{both}_share"])]
        for name, of, both in (
            (f"of the {left}'s, found by the {right}", "reference", "found"),
            (f"of the {right}'s, confirmed by the {left}", "candidate", "confirmed"),
        )
    ]
    mean, largest = boxes["mean_score_difference"], boxes["largest_score_difference"]
    caption = f"Boxes{title}; scores differ by {mean:.1e} on average, {largest:.1e} at most"
    return Table(caption, ("boxes", "all", "in both", "share"), rows, is_sortable=False)


def _limit_table(comparison: Mapping[str, Any]) -> Table:
    rows = [
        [text(name), text("within" if is_within else "PAST THE TOLERANCE")]
        for name, is_within in comparison["within"].items()
    ]
    return Table("Tolerances", ("what", "verdict"), rows, is_sortable=False)


def _head_table(heads: Mapping[str, Any]) -> Table:
    rows = [
        [
            text(name),
            scientific(head["max"]),
            scientific(head["mean"]),
            number(head["cosine"], 8),
        ]
        for name, head in heads.items()
    ]
    columns = ("head", "largest difference", "mean difference", "cosine")
    return Table("Head maps, candidate against reference", columns, rows, is_sortable=False)


def _entries(
    tally: Tally, places: Mapping[str, str], drawing: Thumbnails, left: str, right: str
) -> Iterator[Entry]:
    for one in tally.apart:
        id = one.reference.id
        yield drawing.show(
            Entry(id, _words(one, left, right), data={"picture": id}),
            places.get(id),
            lambda width, height: (0, 0, width, height),
            [
                (f"the {left}'s boxes", _boxes(one.reference, one.candidate)),
                (f"the {right}'s boxes", _boxes(one.candidate, one.reference)),
            ],
        )


def _words(one: ApartPicture, left: str, right: str) -> str:
    boxes = one.boxes
    return (
        f"{boxes.reference - boxes.found} of {boxes.reference} boxes of the {left} are not the "
        f"{right}'s, {boxes.candidate - boxes.confirmed} of {boxes.candidate} of the {right} "
        f"not the {left}'s; scores differ by up to {boxes.largest_score_difference:.2g}"
    )


def _boxes(found: Detections, other: Detections) -> Iterator[Drawn]:
    """The boxes of one model: those that the other has, too, and those that it has not."""
    shared = {i for i, _ in matched_boxes(found, other)}
    for i, (box, score) in enumerate(zip(found.boxes.tolist(), found.scores, strict=True)):
        if score >= MATCH_SCORE:
            x1, y1, x2, y2 = box
            yield Drawn((x1, y1, x2 - x1, y2 - y1), "face" if i in shared else "missed")

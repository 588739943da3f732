"""What a page shows of the finds themselves: curves, events, sizes, causes, the worst pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cfdist.report.page import charts
from cfdist.report.page.gallery import Box, Drawn, Entry, Gallery, Thumbnails, around
from cfdist.report.page.tables import Table, count, percent, text
from cfdist.widerface.analysis import Analysis, Curve, FalsePositive, Miss, Share
from cfdist.widerface.ground_truth import DIFFICULTIES, LABELS, GroundTruth
from cfdist.widerface.metric import PROTOCOLS, Matched
from cfdist.widerface.predictions import read_predictions_file

MOST_SHOWN = 18  # pictures of a gallery

# A curve's next point is drawn if it is so far from the last one; finer than a pixel.
_STEP = 0.002

Labels = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Evidence:
    """What a run has found, for a page that shows more than its figures.

    Attributes:
        truth: The ground truth.
        matched: What became of each prediction.
        files: Picture id -> its prediction file, or `None` if nothing was found.
        pictures: Picture id -> where the picture is; those that are known.
        labels: Reads the faces' labels.
    """

    truth: GroundTruth
    matched: Matched
    files: Mapping[str, Path | None]
    pictures: Mapping[str, str]
    labels: Callable[[GroundTruth], Labels]


@dataclass(frozen=True)
class Quality:
    """The parts of the page, in its order."""

    curves: Sequence[Markup]
    sure_score: float
    events: Table
    heights: Table
    height_chart: Markup
    causes: Table | None
    galleries: Sequence[Gallery]


def quality_of(evidence: Evidence, protocol: str) -> Quality:
    """All that the finds say, in detail by the chosen protocol."""
    analyses = {name: Analysis(evidence.truth, evidence.matched, name) for name in PROTOCOLS}
    chosen = analyses[protocol]
    title = PROTOCOLS[protocol].title
    try:
        labels = evidence.labels(evidence.truth)
    except OSError:
        labels = {}
    labels = {} if any(id not in labels for id in chosen.ids) else labels
    shares = chosen.heights()
    bars = {one.name.partition(" ")[0]: one.ap for one in shares if one.ap is not None}
    thumbnails = Thumbnails()
    return Quality(
        [
            curve_chart(
                f"Precision over recall, {PROTOCOLS[name].title}",
                {difficulty: one.curve(difficulty) for difficulty in DIFFICULTIES},
            )
            for name, one in analyses.items()
        ],
        chosen.sure_score,
        _event_table(chosen, title),
        _share_table(f"Hard faces by their height, {title}", "pixels", shares),
        charts.bar_chart(
            f"AP of the hard faces by their height, {title}",
            bars,
            "height of the face, from (pixels)",
            charts.Axis("AP", charts.FRACTION),
        ),
        _share_table(f"Hard faces by their labels, {title}", "label", chosen.causes(labels))
        if labels
        else None,
        [
            Gallery(
                "The worst misses",
                "Faces that count and that no prediction hits, whatever its score: the easiest and "
                "largest ones first.",
                [*_misses(chosen, evidence, labels, thumbnails)],
            ),
            Gallery(
                "The surest false positives",
                "Predictions that count as wrong, those with the highest scores first.",
                [*_false_positives(chosen, evidence, thumbnails)],
            ),
        ],
    )


def curve_chart(name: str, curves: Mapping[str, Curve]) -> Markup:
    """Precision over recall; each line is named with its AP."""
    lines = {
        f"{title} (AP {100 * curve.ap:.2f} %)": _thinned(curve) for title, curve in curves.items()
    }
    fraction = charts.FRACTION
    return charts.line_chart(
        name, lines, charts.Axis("recall", fraction), charts.Axis("precision", fraction)
    )


def _thinned(curve: Curve) -> list[charts.Point]:
    """The points of a curve that a reader can tell apart, from the first prediction on."""
    points: list[charts.Point] = []
    for recall, precision in zip(curve.recall.tolist(), curve.precision.tolist(), strict=True):
        here = (recall, precision)
        if precision and (
            not points or max(abs(a - b) for a, b in zip(here, points[-1], strict=True)) >= _STEP
        ):
            points.append(here)
    return points


def _event_table(analysis: Analysis, title: str) -> Table:
    rows = [
        [
            text(event),
            count(pictures),
            count(faces),
            *(percent(aps[name]) for name in DIFFICULTIES),
        ]
        for event, (pictures, faces, aps) in analysis.events().items()
    ]
    columns = ("event", "pictures", "hard faces", *(f"AP {name}" for name in DIFFICULTIES))
    return Table(f"AP of each event, {title}", columns, rows)


def _share_table(caption: str, what: str, shares: Sequence[Share]) -> Table:
    has_ap = any(one.ap is not None for one in shares)
    rows = [
        [
            text(one.name),
            count(one.faces),
            *([percent(one.ap)] if has_ap else []),
            percent(one.sure / one.faces if one.faces else None, 1),
            percent(one.found / one.faces if one.faces else None, 1),
            count(one.faces - one.found),
        ]
        for one in shares
    ]
    ap = ("AP",) if has_ap else ()
    return Table(
        caption,
        (what, "hard faces", *ap, "found surely", "found at any score", "missed"),
        rows,
    )


def _misses(
    analysis: Analysis, evidence: Evidence, labels: Labels, thumbnails: Thumbnails
) -> Iterator[Entry]:
    for miss in islice(analysis.misses(), MOST_SHOWN):
        box = _box(evidence.truth[miss.id].boxes[miss.face])
        data = {"picture": miss.id, "face": str(miss.face)}
        entry = Entry(miss.id, _words_of_miss(miss, box, labels), data=data)
        yield _drawn(entry, Drawn(box, "missed"), analysis, evidence, thumbnails)


def _words_of_miss(miss: Miss, box: Box, labels: Labels) -> str:
    words = (
        f"face {miss.face} of {box[2]:.0f} x {box[3]:.0f} pixels, {', '.join(miss.difficulties)}"
    )
    if miss.id in labels:
        row = labels[miss.id][miss.face]
        for (label, values), value in zip(LABELS.items(), row.tolist(), strict=True):
            if value and value < len(values):
                words += f", {label} {values[value]}"
    return words


def _false_positives(
    analysis: Analysis, evidence: Evidence, thumbnails: Thumbnails
) -> Iterator[Entry]:
    for one in islice(analysis.false_positives(), MOST_SHOWN):
        boxes, _ = _predictions(evidence, one.id)
        data = {"picture": one.id, "prediction": str(one.prediction)}
        entry = Entry(one.id, _words_of_false_positive(one), data=data)
        target = Drawn(_box(boxes[one.prediction]), "wrong")
        yield _drawn(entry, target, analysis, evidence, thumbnails)


def _words_of_false_positive(one: FalsePositive) -> str:
    words = f"score {one.score:.3f}, prediction {one.prediction}, "
    if one.is_second:
        return f"{words}a second find of face {one.face} (IoU {one.iou:.2f})"
    if one.face < 0:
        return f"{words}overlaps no face of the ground truth"
    return f"{words}overlaps face {one.face} by IoU {one.iou:.2f} only"


def _drawn(
    entry: Entry, target: Drawn, analysis: Analysis, evidence: Evidence, thumbnails: Thumbnails
) -> Entry:
    """A cut-out around a box, with the faces and the sure finds near it."""
    truth = evidence.truth[entry.title]
    hard = truth.counted[DIFFICULTIES.index("hard")]
    drawn = [
        Drawn(_box(face), "face" if counts else "ignored")
        for face, counts in zip(truth.boxes, hard, strict=True)
    ]
    boxes, scores = _predictions(evidence, entry.title)
    drawn += [Drawn(_box(one), "found") for one in boxes[scores >= analysis.sure_score]]
    drawn.append(target)
    return thumbnails.show(
        entry,
        evidence.pictures.get(entry.title),
        lambda width, height: around(target.box, width, height),
        [("faces and finds", drawn)],
    )


def _predictions(evidence: Evidence, id: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The boxes (k, 4) x y w h and scores (k,) of a picture, as they were scored."""
    path = evidence.files.get(id)
    return (np.empty((0, 4)), np.empty(0)) if path is None else read_predictions_file(path)


def _box(row: NDArray[np.float64]) -> Box:
    x, y, w, h = row.tolist()
    return (x, y, w, h)

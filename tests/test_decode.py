"""Peaks, boxes and suppression against the goldens and against plain loops."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfdist import decode
from cfdist.decode import (
    HeadMaps,
    Peaks,
    decode_boxes,
    decode_detections,
    finite_pictures,
    graph_peaks,
    join_peaks,
    merge_views,
    nms,
    select_peaks,
    to_peaks,
    vote,
)
from cfdist.detections import Detections
from cfdist.preprocess import View, letterbox_affine, stretch_affine
from cfdist.widerface.predictions import STYLES, prediction_text, rows


def golden_heads(golden) -> HeadMaps:
    return HeadMaps(*(golden[key][None] for key in ("hm", "wh", "hm_offset", "landmarks")))


def heads_of(hm: np.ndarray, seed: int = 0) -> HeadMaps:
    """Head maps with the given (n, h, w) heat maps and random other heads."""
    random = np.random.default_rng(seed)
    n, h, w = hm.shape
    return HeadMaps(
        hm[:, None].astype(np.float32),
        *(random.normal(size=(n, c, h, w)).astype(np.float32) for c in (2, 2, 10)),
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_real_head_maps_decode_like_the_reference(shared, number):
    golden = np.load(shared / "golden" / f"decode_{number}.npz")
    size = np.array([[golden["width"], golden["height"]]])

    peaks = select_peaks(golden_heads(golden))
    boxes, landmarks = decode_boxes(peaks, "centerface_pytorch", size, (800, 800))

    reference = golden["seed_dets"]
    np.testing.assert_allclose(boxes[0], reference[:, :4], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(peaks.score[0], reference[:, 4])
    np.testing.assert_allclose(landmarks[0].reshape(200, 10), reference[:, 5:], rtol=0, atol=1e-3)
    text = prediction_text("e/p", rows(boxes[0], peaks.score[0], STYLES["guide"]), STYLES["guide"])
    assert text.splitlines()[2:] == list(golden["seed_lines"])


@pytest.mark.slow
def test_a_batch_decodes_like_its_pictures_alone(shared):
    goldens = [np.load(shared / "golden" / f"decode_{i}.npz") for i in range(3)]
    sizes = np.array([[g["width"], g["height"]] for g in goldens])
    together = HeadMaps(
        *(
            np.concatenate([getattr(golden_heads(g), name) for g in goldens])
            for name in ("hm", "wh", "offset", "landmarks")
        )
    )
    peaks = select_peaks(together)
    boxes, landmarks = decode_boxes(peaks, "centerface", sizes, (800, 800))
    for i, golden in enumerate(goldens):
        alone_peaks = select_peaks(golden_heads(golden))
        alone = decode_boxes(alone_peaks, "centerface", sizes[i : i + 1], (800, 800))
        np.testing.assert_array_equal(boxes[i], alone[0][0])
        np.testing.assert_array_equal(landmarks[i], alone[1][0])
        np.testing.assert_array_equal(peaks.score[i], alone_peaks.score[0])


# Few distinct values, so that plateaus and equal scores are the rule.
heat_maps = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0]),
)


@settings(deadline=None)
@given(
    heat_maps,
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([0.0, 0.125, 0.3]),
    st.booleans(),
)
def test_peaks_are_those_of_a_plain_loop(hm, k, above, only_maxima):
    heads = heads_of(hm)
    peaks = select_peaks(heads, k, above, only_maxima)
    if k is None:
        assert peaks.score.shape[1] == np.count_nonzero(peaks.score, axis=1).max()
    for i, one in enumerate(hm):
        height, width = one.shape
        found = [
            (-one[r, c], r * width + c)
            for r in range(height)
            for c in range(width)
            if one[r, c] > above
            and (
                not only_maxima
                or one[r, c] == one[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].max()
            )
        ]
        found = sorted(found)[:k]
        count = len(found)
        assert peaks.cell[i, :count].tolist() == [cell for _, cell in found]
        assert peaks.score[i, :count].tolist() == [-negative for negative, _ in found]
        assert not peaks.score[i, count:].any()
        for row, (_, cell) in enumerate(found):
            r, c = divmod(cell, width)
            np.testing.assert_array_equal(peaks.values[i, row, 0:2], heads.wh[i, :, r, c])
            np.testing.assert_array_equal(peaks.values[i, row, 2:4], heads.offset[i, :, r, c])
            np.testing.assert_array_equal(peaks.values[i, row, 4:], heads.landmarks[i, :, r, c])


def test_the_model_s_rule_picks_the_peaks_of_maps_and_of_graphs(spec):
    heads = heads_of(np.array([[[0.9, 0.8, 0.0], [0.0, 0.0, 0.0], [0.1, 0.0, 0.3]]]))
    picked = to_peaks(heads, spec(peaks="threshold", score=0.1, top_k=None))
    assert picked.cell.tolist() == [[0, 1, 8]]
    of_graph = select_peaks(heads, 4)
    assert to_peaks(of_graph, spec(score=0.25)).score.tolist() == [
        pytest.approx([0.9, 0.3, 0.0, 0.0])
    ]


def test_batches_with_other_numbers_of_peaks_are_joined():
    hm = np.zeros((3, 4, 4))
    hm[0, 0, 0] = hm[1, :, 0] = hm[2, 3, 3] = 0.5
    whole = select_peaks(heads_of(hm), None, only_maxima=False)
    parts = [
        select_peaks(HeadMaps(*(maps[i : i + 1] for maps in heads_of(hm))), None, 0.0, False)
        for i in range(3)
    ]
    assert [part.score.shape[1] for part in parts] == [1, 4, 1]
    for ours, theirs in zip(join_peaks(parts), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert join_peaks([]).values.shape == (0, 0, 14)


def test_empty_and_nan_maps_have_no_peaks():
    peaks = select_peaks(heads_of(np.zeros((2, 5, 5))))
    assert not peaks.score.any()
    assert not select_peaks(heads_of(np.full((1, 5, 5), np.nan))).score.any()


def one_peak(cell: int, values: list[float]) -> Peaks:
    """The peak of a map of 200 columns."""
    return Peaks(
        np.array([[0.5]], np.float32),
        np.array([[cell]], np.int32),
        np.array([[values]], np.float32),
    )


def test_the_authors_convention_by_hand():
    # Row 50, column 100; y first: height exp(log 10), width exp(log 20), offsets 0.25 and 0.75,
    # all landmarks in the box's middle.
    peaks = one_peak(50 * 200 + 100, [np.log(10), np.log(20), 0.25, 0.75] + [0.5] * 10)
    boxes, landmarks = decode_boxes(peaks, "centerface", np.array([[800, 800]]), (800, 800))
    x, y = (100 + 0.75 + 0.5) * 4, (50 + 0.25 + 0.5) * 4
    np.testing.assert_allclose(boxes[0, 0], [x - 40, y - 20, x + 40, y + 20], rtol=1e-6)
    np.testing.assert_allclose(landmarks[0, 0], [[x, y]] * 5, rtol=1e-6)


@settings(deadline=None)
@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.integers(0, 199),
    st.integers(0, 199),
    st.floats(-2, 3, width=32),
    st.floats(-2, 3, width=32),
    st.booleans(),
)
def test_boxes_go_back_through_the_affine(width, height, row, column, log_w, log_h, is_stretched):
    """Letterboxing or stretching a decoded box gives the cells that it was decoded from."""
    peaks = one_peak(row * 200 + column, [log_w, log_h, 0.5, 0.5] + [0.0] * 10)
    sizes = np.array([[width, height]])
    boxes, _ = decode_boxes(peaks, "centerface_pytorch", sizes, (800, 800), is_stretched)
    affine = (stretch_affine if is_stretched else letterbox_affine)(width, height, 800, 800)
    corners = np.vstack([boxes[0, 0].reshape(2, 2).T.astype(float), np.ones(2)])
    x1, y1, x2, y2 = (affine @ corners).T.reshape(-1) / 4
    assert (x1 + x2) / 2 == pytest.approx(column + 0.5, abs=1e-2)
    assert (y1 + y2) / 2 == pytest.approx(row + 0.5, abs=1e-2)
    assert x2 - x1 == pytest.approx(4 * np.exp(log_w), rel=1e-3, abs=1e-3)
    assert y2 - y1 == pytest.approx(4 * np.exp(log_h), rel=1e-3, abs=1e-3)


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[bool]:
    keep = [bool(score > 0) for score in scores]
    areas = [(x2 - x1 + 1) * (y2 - y1 + 1) for x1, y1, x2, y2 in boxes]
    for i in range(len(boxes)):
        for j in range(i + 1, len(boxes)):
            if not (keep[i] and keep[j]):
                continue
            w = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0]) + 1
            h = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1]) + 1
            both = max(w, 0) * max(h, 0)
            if both >= threshold * (areas[i] + areas[j] - both):
                keep[j] = False
    return keep


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(0, 12)] * 2), min_size=0, max_size=25
    ),
    st.sampled_from([0.25, 0.3, 0.5]),
)
def test_suppression_is_that_of_a_plain_loop(corners, threshold):
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in corners], np.float32).reshape(-1, 4)
    scores = np.linspace(1, 0.1, len(boxes), dtype=np.float32)
    threshold = np.float32(threshold)
    assert nms(boxes, scores, threshold).tolist() == plain_nms(boxes, scores, threshold)


@pytest.mark.parametrize("pairs", [1, 100, 3000])
def test_suppression_of_many_boxes_takes_little_memory(monkeypatch, pairs):
    random = np.random.default_rng(pairs)
    start = random.uniform(0, 90, (150, 2))
    boxes = np.hstack([start, start + random.uniform(5, 25, (150, 2))]).astype(np.float32)
    scores = np.linspace(1, 0, 150, dtype=np.float32)
    whole = nms(boxes, scores, 0.3)
    monkeypatch.setattr(decode, "_PAIRS_AT_ONCE", pairs)
    assert nms(boxes, scores, 0.3).tolist() == whole.tolist()
    assert whole.tolist() == plain_nms(boxes, scores, np.float32(0.3))


def test_boxes_at_own_size_end_at_the_picture(spec):
    # The first cell of a 64x32 input; 50 x 32 is the picture's own size.
    peaks = one_peak(0, [np.log(10), np.log(20), 0.0, 0.0] + [0.5] * 10)
    model = spec(height=32, width=64, size="own", nms=None)
    (found,) = decode_detections(["e/0"], np.array([[50, 32]], np.int32), peaks, model)
    x, y = 2 * 50 / 64, 2.0  # half a cell, back on each axis
    np.testing.assert_allclose(found.boxes, [[0, 0, x + 40 * 50 / 64, y + 20]], rtol=1e-5)
    np.testing.assert_allclose(found.landmarks, [[[x, y]] * 5], rtol=1e-5)


def test_a_mirrored_picture_gives_the_same_faces_with_left_and_right_exchanged(spec):
    values = [*np.log([10, 20]), 0.25, 0.75, *np.linspace(0.1, 0.9, 10)]
    model = spec(height=32, width=64, size="own", nms=None)
    sizes = np.array([[60, 30]], np.int32)
    peaks = one_peak(2 * 16 + 5, values)  # the map of this input has 16 columns
    (plain,) = decode_detections(["e/0"], sizes, peaks, model)
    (mirrored,) = decode_detections(["e/0"], sizes, peaks, model, View(is_mirrored=True))
    x1, y1, x2, y2 = plain.boxes[0]
    np.testing.assert_allclose(mirrored.boxes[0], [60 - x2, y1, 60 - x1, y2], rtol=1e-6)
    for ours, theirs in enumerate((1, 0, 2, 4, 3)):  # eyes, nose, corners of the mouth
        x, y = plain.landmarks[0, theirs]
        np.testing.assert_allclose(mirrored.landmarks[0, ours], [60 - x, y], rtol=1e-6)


box_lists = st.lists(
    st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 12)] * 2), min_size=0, max_size=12
)


@given(box_lists, st.sampled_from([0.3, 0.5]))
def test_box_voting_is_that_of_a_plain_loop(corners, threshold):
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in corners], np.float32).reshape(-1, 4)
    scores = np.linspace(1, 0.1, len(boxes), dtype=np.float32)
    points = np.repeat(boxes[:, None, :2], 5, axis=1) + 1
    voted, sure, landmarks = vote(boxes, scores, points, threshold)
    left, expected = [*range(len(boxes))], []
    while left:
        first = left[0]
        together = [
            i
            for i in left
            if i == first or not plain_nms(boxes[[first, i]], scores[[first, i]], threshold)[1]
        ]
        weights = scores[together, None]
        expected.append([*(boxes[together] * weights).sum(axis=0) / weights.sum(), scores[first]])
        left = [i for i in left if i not in together]
    found = np.column_stack((voted, sure))
    np.testing.assert_allclose(found, np.reshape(expected, (-1, 5)), rtol=1e-4)
    np.testing.assert_allclose(landmarks[:, 3], voted[:, :2] + 1, rtol=1e-4)


@pytest.mark.parametrize("merge", ["nms", "vote"])
def test_views_of_a_picture_become_one_record(spec, merge):
    def view(id: str, boxes, scores, **more) -> Detections:
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        return Detections(
            id, boxes, np.array(scores, np.float32), np.zeros((len(boxes), 5, 2)), 90, 70, **more
        )

    face, near, other = [0, 0, 20, 20], [0, 0, 20, 22], [40, 40, 60, 60]
    views = [
        view("a", [near, other], [0.6, 0.2]),
        view("b", [face], [0.9]),
        view("a", [face], [0.9]),
        Detections("b", error="not finite", is_doubtful=True),
    ]
    model = spec(flip=True, merge=merge)
    a, b = merge_views(views, model)
    assert (a.id, a.width, a.height) == ("a", 90, 70)
    np.testing.assert_array_equal(a.scores, np.array([0.9, 0.2], np.float32))
    mean = [0, 0, 20, 20 + 2 * 0.6 / 1.5] if merge == "vote" else face
    np.testing.assert_allclose(a.boxes, [mean, other], rtol=1e-6)
    assert (b.error, b.is_doubtful) == ("not finite", True)
    assert merge_views(views[:2], spec()) == views[:2]
    (nothing,) = merge_views([view("c", [], []), view("c", [], [])], model)
    assert nothing.boxes.shape == (0, 4) and nothing.landmarks.shape == (0, 5, 2)


def test_rows_without_score_are_no_boxes():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    assert nms(boxes, np.array([0.5, 0.0], np.float32), 0.3).tolist() == [True, False]


@pytest.mark.parametrize("head", ["hm", "wh", "offset", "landmarks"])
@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]])
def test_a_picture_with_anything_not_finite_is_found(head, values):
    heads = heads_of(np.random.default_rng(0).uniform(size=(3, 8, 12)))
    getattr(heads, head)[1, -1].flat[5 : 5 + len(values)] = values
    assert finite_pictures(heads).tolist() == [True, False, True]


def test_large_finite_values_are_finite():
    heads = heads_of(np.zeros((2, 8, 12)))
    heads.landmarks[0] = np.finfo(np.float32).max
    heads.wh[1, 0], heads.wh[1, 1] = np.finfo(np.float32).max, np.finfo(np.float32).min
    assert finite_pictures(heads).all()
    heads.hm[1, 0, 7, 11] = np.nan
    assert finite_pictures(heads).tolist() == [True, False]


def test_a_picture_without_faces_has_its_size(spec):
    peaks = select_peaks(heads_of(np.zeros((1, 8, 12))))
    (found,) = decode_detections(
        ["e/0"], np.array([[50, 32]], np.int32), peaks, spec(height=32, width=48)
    )
    assert (found.id, found.width, found.height, found.error) == ("e/0", 50, 32, None)
    assert (found.boxes.shape, found.scores.shape) == ((0, 4), (0,))
    assert found.landmarks.shape == (0, 5, 2)


def test_of_no_pictures_none_is_not_finite():
    heads = heads_of(np.zeros((0, 8, 12)))
    for outputs in (heads, select_peaks(heads)):
        finite = finite_pictures(outputs)
        assert (finite.shape, finite.dtype) == ((0,), bool)


@given(
    hnp.arrays(
        np.float32,
        (2, 15, 4, 4),
        elements=st.one_of(
            st.floats(width=32), st.sampled_from([0.0, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan])
        ),
    )
)
def test_finite_pictures_are_those_of_isfinite(values):
    heads = HeadMaps(values[:, :1], values[:, 1:3], values[:, 3:5], values[:, 5:])
    np.testing.assert_array_equal(
        finite_pictures(heads), np.isfinite(values).reshape(2, -1).all(axis=1)
    )


@pytest.mark.parametrize(
    ("score", "value", "is_finite"),
    [
        (0.5, 1.0, True),
        (0.5, np.nan, False),
        (0.5, -np.inf, False),
        (0.0, np.nan, True),  # no peak is in that row
        (-1.0, np.inf, True),
        (np.inf, 1.0, False),
        (np.nan, 1.0, False),
    ],
)
def test_only_rows_with_a_peak_have_to_be_finite(score, value, is_finite):
    scores = np.array([[0.9, 0.0, score], [0.9, 0.8, 0.0]], np.float32)
    values = np.zeros((2, 3, 14), np.float32)
    values[0, 2, 3] = value
    peaks = Peaks(scores, np.zeros((2, 3), np.int32), values)
    assert finite_pictures(peaks).tolist() == [is_finite, True]
    of_graph = graph_peaks(scores, np.arange(6).reshape(2, 3), values)
    assert finite_pictures(of_graph).tolist() == [is_finite, True]


def test_the_examples_of_the_docstrings():
    result = doctest.testmod(decode)
    assert result.attempted > 0
    assert result.failed == 0

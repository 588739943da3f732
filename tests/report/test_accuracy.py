"""Notes on an AP: what limits it, and the likely reason where it is near zero."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cfdist.report.accuracy import accuracy_notes, expectation, expected_notes, how_tested
from cfdist.report.results import expected_ap
from cfdist.widerface.ground_truth import PictureTruth
from cfdist.widerface.metric import Reach
from cfdist.widerface.scoring import score_files

AUTHORS = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
TABLES = {
    "right": lambda b, s: np.column_stack((b, s)),
    "corners": lambda b, s: np.column_stack((b[:, :2], b[:, :2] + b[:, 2:], s)),
    "relative": lambda b, s: np.column_stack((b / [1024, 683, 1024, 683], s)),
    "elsewhere": lambda b, s: np.column_stack((b[:, :2] + [3000, 0], b[:, 2:], s)),
    "four_times": lambda b, s: np.column_stack(
        (b[:, :2] + b[:, 2:] / 2 - b[:, 3:1:-1] * 2, b[:, 3:1:-1] * 4, s)
    ),
    "cut": lambda b, s: np.column_stack((b, s))[s > 0.5],
    "constant": lambda b, s: np.column_stack((b, np.ones(len(s)))),
    "backward": lambda b, s: np.column_stack((b[:, :2], b[:, 2:] * [[-1, 1]], s))[:2],
    "nothing": lambda b, s: np.empty((0, 5)),
}


@pytest.fixture
def notes_on(tmp_path):
    """A name in `TABLES`, or a function like theirs, and a model -> the notes on such files."""

    def make(kind, model=None, counted=(1, 1, 1), absent=0) -> list[str]:
        random = np.random.default_rng(5)
        truth, files = {}, {}
        for i in range(40):
            size = random.uniform(20, 120, (6, 2))
            faces = np.concatenate((random.uniform(200, [800, 480], (6, 2)), size), axis=1)
            truth[f"e/{i}"] = PictureTruth(
                f"e/{i}", faces, np.array(counted, bool)[:, None].repeat(6, axis=1)
            )
            write = TABLES[kind] if isinstance(kind, str) else kind
            table = write(faces, random.uniform(0.01, 0.99, 6))
            files[f"e/{i}"] = tmp_path / f"{i}.txt"
            lines = [" ".join(map(repr, row)) for row in table.tolist()]
            files[f"e/{i}"].write_text("\n".join(["e", str(len(lines)), *lines]) + "\n")
        files |= dict.fromkeys(list(files)[:absent])
        metric = score_files(truth, files, 1)[0]
        return accuracy_notes(metric.compute(), metric.reach(), truth, files, model)

    return make


def test_recall_that_ends_where_files_end_is_not_blamed_on_the_scores(notes_on):
    def strong(faces, scores):
        return np.column_stack((faces, 0.5 + scores / 2))

    assert notes_on(strong, absent=20) == []


def test_a_good_ap_has_no_notes(notes_on, spec):
    assert notes_on("right") == []
    assert notes_on("right", spec()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("corners", ["read as x1 y1 x2 y2 score, the boxes hit 100 %", "write x y w h"]),
        (
            "relative",
            ["x y w h score, in fractions of the picture's sides (0..1)", "no box reaches"],
        ),
        ("elsewhere", ["boxes reach IoU 0.4 with 0 % of the faces, however", "these pictures?"]),
    ],
)
def test_an_ap_near_zero_has_its_likely_reason_first(notes_on, kind, words):
    note = notes_on(kind)[0]
    for part in ("the AP is", *words):
        assert part in note


def test_a_model_is_held_to_the_other_convention(notes_on, spec):
    (note,) = notes_on("four_times", spec(sha256="0", path=spec().path.with_name("x.om"),
                                          convention="centerface_pytorch",
                                          name="centerface_pytorch"))  # fmt: skip
    for part in ("no box reaches IoU 0.4", "the convention centerface it would be",
                 "try model=centerface "):  # fmt: skip
        assert part in note


def test_a_file_that_is_known_is_named(notes_on, spec, tmp_path):
    wrong = {"convention": "centerface_pytorch", "name": "centerface_pytorch"}
    words = "is that of model=centerface, but was run with the conventions of"
    assert words in notes_on("elsewhere", spec(sha256=AUTHORS, **wrong))[0]

    # The same network saved anew: another digest, the same outputs.
    names = ("537", "538", "539", "540")
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names]
    nodes = [onnx.helper.make_node("Identity", ["x"], [name]) for name in names]
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "g", [image], values)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "new.onnx")
    assert words in notes_on("elsewhere", spec(path=tmp_path / "new.onnx", **wrong))[0]

    (tmp_path / "new.onnx").write_bytes(b"damaged")
    note = notes_on("elsewhere", spec(path=tmp_path / "new.onnx", **wrong))[0]
    assert "describe this model?" in note
    assert words not in note


@pytest.mark.slow
def test_what_bounds_the_ap_is_named(notes_on):
    (cut,) = notes_on("cut")
    assert "no score is below 0.5" in cut
    assert "recall ends at 4" in cut or "recall ends at 5" in cut
    (constant,) = notes_on("constant")
    assert "all 240 predictions have the score 1" in constant
    assert "80 of 80 boxes have a negative width or height" in "\n".join(notes_on("backward"))
    assert notes_on("nothing") == [
        "nothing was found in any picture; there is no prediction at all"
    ]
    (missing,) = notes_on("right", counted=(0, 1, 1))
    assert "no face of these pictures counts as easy" in missing
    (missing,) = notes_on("elsewhere", counted=(0, 0, 0))
    assert "counts as easy or medium or hard" in missing


@pytest.mark.slow
def test_scores_that_rank_backwards_are_named(notes_on):
    def with_many_wrong(boxes, scores):
        right = np.column_stack((boxes, scores / 100))
        aside = np.tile(boxes, (200, 1)) + np.array([2000, 0, 0, 0])
        wrong = np.column_stack((aside, np.ones(1200)))
        return np.concatenate((right, wrong))

    (note,) = notes_on(with_many_wrong)
    assert "boxes hit 100 % of the faces, but wrong ones have higher scores" in note


@pytest.mark.parametrize("low", [0.02, 0.0, -3.0])
def test_low_scores_are_not_cut_off(low):
    recall = {
        name: dict.fromkeys(("easy", "medium", "hard"), 0.6) for name in ("official", "guide")
    }
    faces = dict.fromkeys(("easy", "medium", "hard"), 10)
    ap = recall
    assert accuracy_notes(ap, Reach(recall, faces, 9, (low, 1.0), 0), {}, {}) == []
    (note,) = accuracy_notes(ap, Reach(recall, faces, 9, (30.0, 100.0), 0), {}, {})
    assert "no score is below 30" in note
    assert "recall ends at 60 % of the" in note


@pytest.mark.slow
def test_a_model_s_own_expected_ap_is_that_of_the_whole_set(compose):
    ap = {name: dict.fromkeys(("easy", "medium", "hard"), 0.9) for name in ("official", "guide")}

    def notes(pictures: int, *overrides: str) -> list[str]:
        config = compose("dataset=wider_val", "model=centerface_pytorch", *overrides)
        return expected_notes(config, expected_ap(config, ap), pictures)

    assert notes(3226) == []
    for pictures, override in ((610, "model.batch=4"), (3226, "model.height=640")):
        (note,) = notes(pictures, override)
        assert "all 3226 pictures of WIDER FACE val at 800x800" in note
    assert notes(610, "model.expected.easy=0.9") == []  # somebody's own
    assert notes(610, "dataset=sample") == []
    assert notes(610, "model=centerface") == []


def test_the_test_of_an_ap_is_told_in_words(compose):
    assert how_tested(compose()) == (
        "pictures letterboxed to 800x800, not mirrored; highest cells of their 3x3, the "
        "best 200 a picture; suppression at IoU 0.3"
    )
    assert how_tested(compose("experiment=authors_own_size", "model.nms=null")) == (
        "pictures at their own size (sides to the next multiple of 32), not mirrored; "
        "all cells with scores above 0.02, no cap; no suppression"
    )
    assert how_tested(compose("experiment=multi_scale", "preprocess.scales=[0.5,800]")) == (
        "pictures scaled to 0.5, 800 pixels (factor of their own size, or short side; sides to "
        "the next multiple of 32), also mirrored, 4 views merged by box voting; all cells with "
        "scores above 0.02, no cap; suppression at IoU 0.3"
    )
    # The scales of a preset are those of pictures at their own size.
    assert how_tested(compose("experiment=multi_scale", "preprocess.size=letterbox")) == (
        "pictures letterboxed to 800x800, also mirrored, 2 views merged by box voting; all cells "
        "with scores above 0.02, no cap; suppression at IoU 0.3"
    )


@pytest.mark.parametrize(
    ("settings", "pictures", "note"),
    [
        ([], 3226, None),
        ([], 610, "this is one of 610 pictures at their own size"),
        (["preprocess.size=letterbox"], 3226, "this is one of 3226 pictures at 800x800"),
        (["model.expected.hard=0.7"], 610, None),
    ],
)
def test_the_authors_figures_stand_beside_their_own_test(compose, settings, pictures, note):
    config = compose("experiment=authors_own_size", "dataset=wider_val", *settings)
    ap = {"official": dict.fromkeys(("easy", "medium", "hard"), 0.95)}
    expected = expectation(config, ap, pictures)
    notes = expected_notes(config, expected, pictures)
    assert expected["comparable"] is not bool(notes)
    assert bool(notes) == bool(note)
    assert all(note in one for one in notes)

"""What a person reads of a comparison."""

from __future__ import annotations

import pytest

from cfdist.comparison.tables import print_comparison, print_layers
from cfdist.report.screen import console

AP = {"official": {"easy": 0.9, "medium": 0.8, "hard": 0.7}}


@pytest.mark.parametrize("within", [True, False])
def test_heads_boxes_aps_and_the_verdict_are_shown(within):
    comparison = {
        "heads": {"hm": {"max": 0.012, "mean": 0.0001, "cosine": 0.99999}},
        "boxes": {
            "found": 9,
            "reference": 10,
            "found_share": 0.9,
            "confirmed": 9,
            "candidate": 9,
            "confirmed_share": 1.0,
            "mean_score_difference": 1e-4,
            "largest_score_difference": 2e-3,
        },
        "reference": {"ap": AP},
        "candidate": {"ap": AP},
        "ap_difference": {"official": {"easy": 0.0, "medium": -0.001, "hard": 0.002}},
        "within": {"ap": within, "boxes": True, "cosine": True},
    }
    with console.capture() as capture:
        print_comparison(comparison)
    text = capture.get()
    for part in ("1.20e-02", "9 of 10", "90.00 %", "-0.100", "+0.200"):
        assert part in text
    assert ("within the tolerances" in text) == within
    assert ("PAST THE TOLERANCE: ap" in text) != within


def layer(tensor: str, apart: float, within: bool = True, other: str = "") -> dict:
    return {
        "tensor": tensor,
        "candidate_tensor": other or tensor,
        "operator": "Conv",
        "weights": [f"{tensor}.weight"],
        "shape": [32, 200, 200],
        "max": apart,
        "mean": apart,
        "relative": apart,
        "cosine": 1.0,
        "within": within,
    }


def test_the_first_layer_that_differs_is_named():
    same, near, far = layer("1", 0.0), layer("2", 1e-5), layer("[3]", 0.25, False, "/x/3")
    found = {"matched": "every operator", "layers": [same, near, far]}
    cases = [
        ({"first_different": None, "first_past": None, "within_tolerance": True}, "bit for bit"),
        ({"first_different": near, "first_past": None, "within_tolerance": True}, "2 (Conv, wei"),
        (
            {"first_different": near, "first_past": far, "within_tolerance": False},
            "PAST THE TOLERANCE first: [3] (Conv, weights [3].weight, /x/3 in the candidate), rel",
        ),
    ]
    for verdict, words in cases:
        with console.capture() as capture:
            print_layers(found | verdict)
        text = capture.get()
        assert words in text
        assert ("within the tolerances" in text) == (verdict["first_different"] is near) & (
            verdict["first_past"] is None
        )
        assert text.count("32x200x200") == 3
        assert text.count("PAST\n") == 1

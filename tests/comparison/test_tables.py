"""What a person reads of a comparison."""

from __future__ import annotations

import pytest

from cfdist.comparison.tables import print_comparison
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

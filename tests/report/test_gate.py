"""The expected AP: when a measured one reaches it, and which gates are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.errors import UserError
from cfdist.report import gate

EXPECTED = ("model.expected.easy=0.9", "model.expected.medium=null", "model.expected.hard=0.5",
            "model.expected.tolerance=0.01", "model.expected.protocol=guide",
            "dataset=wider_val")  # fmt: skip
fractions = st.floats(0, 1)


@pytest.fixture(scope="module")
def expecting(compose):
    """A configuration that expects an easy and a hard AP."""
    return compose(*EXPECTED)


@given(easy=fractions, medium=fractions, hard=fractions)
def test_every_expected_ap_has_to_be_reached_within_the_tolerance(expecting, easy, medium, hard):
    ap = {
        "official": dict.fromkeys(("easy", "medium", "hard"), 0.0),
        "guide": {"easy": easy, "medium": medium, "hard": hard},
    }
    assert gate.expected(expecting, ap) == {
        "protocol": "guide",
        "ap": {"easy": 0.9, "hard": 0.5},
        "tolerance": 0.01,
        "met": easy >= 0.9 - 0.01 and hard >= 0.5 - 0.01,
    }


def test_nothing_is_expected_of_the_sample_set_or_without_figures(compose):
    ap = {"guide": dict.fromkeys(("easy", "medium", "hard"), 0.0)}
    assert gate.expected(compose(*EXPECTED, "dataset=sample"), ap) is None
    none = [f"model.expected.{name}=null" for name in ("easy", "medium", "hard")]
    assert gate.expected(compose("dataset=wider_val", *none), ap) is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.expected.easy=null", "model.expected.hard=null"], "has no expected AP"),
        (["dataset=sample"], "the sample set has no expected AP"),
        (["backend=simulated"], "the simulated backend"),
    ],
)
def test_a_gate_that_no_result_can_miss_is_refused(compose, overrides, words):
    gate.refuse_empty(compose(*EXPECTED, "eval.gate=true"))
    gate.refuse_empty(compose(*EXPECTED, *overrides))
    with pytest.raises(UserError, match=words):
        gate.refuse_empty(compose(*EXPECTED, "eval.gate=true", *overrides))

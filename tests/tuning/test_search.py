"""The fastest candidate that keeps the reference's AP."""

from __future__ import annotations

import pytest

from cfdist.errors import UserError
from cfdist.tuning import search as module
from cfdist.tuning.candidates import Candidate, Variant
from cfdist.tuning.search import search
from cfdist.tuning.trials import Found

REFERENCE, FAST, WRONG, BROKEN = map(Variant, ("reference", "fast", "wrong", "broken"))
RATES = {"reference": 10.0, "fast": 20.0, "wrong": 90.0}
FOUND = {
    REFERENCE: Found(10.0, {"easy": 0.9, "hard": 0.6}),
    FAST: Found(20.0, {"easy": 0.91, "hard": 0.5985}),
    WRONG: Found(90.0, {"easy": 0.9, "hard": 0.59}),
    BROKEN: Found(reason="no such device"),
}
CANDIDATES = [Candidate(one, None, batch) for one in (FAST, WRONG, BROKEN) for batch in (1, 4)]


class FakeTrials:
    """Trials whose runs take a minute of a clock of their own."""

    def __init__(self) -> None:
        self.now, self.runs = 0.0, []

    def accuracy(self, variant):
        self.now += 60
        self.runs.append(str(variant))
        return FOUND[variant]

    def measure(self, standing, seconds, is_check):
        self.now += 60
        self.runs.append((str(standing.candidate), is_check))
        standing.rate = RATES[standing.candidate.variant.backend] + standing.candidate.batch
        standing.seconds = seconds


@pytest.fixture
def trials(monkeypatch) -> FakeTrials:
    trials = FakeTrials()
    monkeypatch.setattr(module.time, "monotonic", lambda: trials.now)
    return trials


def test_only_what_keeps_the_ap_is_measured(trials, capsys):
    outcome = search(trials, CANDIDATES, REFERENCE, (0.002, 60))
    assert trials.runs[:4] == ["reference", "fast", "wrong", "broken"]
    measured = {run[0] for run in trials.runs[4:]}
    assert measured == {"fast, batch 1", "fast, batch 4"}
    assert str(outcome.best.candidate) == "fast, batch 4"
    assert outcome.best.checked and outcome.is_whole
    assert outcome.loss(FAST) == pytest.approx(0.0015)
    reasons = {str(one.candidate): one.reason for one in outcome.standings}
    assert reasons["wrong, batch 1"] == (
        "its AP is 1.00 points below the reference's (tune.tolerance)"
    )
    assert reasons["broken, batch 4"] == "no such device"
    said = capsys.readouterr().out
    assert "numbers of reference: AP 90.00 / 60.00 %; the reference" in said
    assert "5.0 of 60 min: fast, batch 1, 3 s: 21.00 pictures/s" in said


def test_a_wider_tolerance_lets_more_in(trials):
    outcome = search(trials, CANDIDATES, REFERENCE, (0.02, 60))
    assert str(outcome.best.candidate) == "wrong, batch 4"


def test_the_minutes_are_kept(trials):
    outcome = search(trials, CANDIDATES, REFERENCE, (0.02, 6))
    # Four runs for the APs, then the search until 70 % of the time are over, then the first again.
    assert trials.runs[4:] == [("fast, batch 1", False), ("fast, batch 1", True),
                               ("fast, batch 1", True)][: len(trials.runs) - 4]  # fmt: skip
    assert str(outcome.best.candidate) == "fast, batch 1"
    late = [one for one in outcome.standings if "the time was over" in one.reason]
    assert len(late) == 3 and all(one.rate is None for one in late)


def test_without_any_time_the_reference_alone_is_looked_at(trials):
    outcome = search(trials, CANDIDATES, REFERENCE, (0.02, 0.1))
    assert trials.runs == ["reference"]
    assert outcome.best is None
    assert all("the time was over" in one.reason for one in outcome.standings)


def test_without_the_reference_nothing_is_called_right(trials):
    with pytest.raises(UserError, match=r"^job=tune: the reference, broken: no such device"):
        search(trials, CANDIDATES, BROKEN, (0.02, 60))
    assert trials.runs == ["broken"]


def test_simulated_devices_find_nothing_that_could_be_compared(trials, monkeypatch):
    monkeypatch.setitem(FOUND, FAST, Found(20.0))
    outcome = search(trials, CANDIDATES[:2], FAST, (0.0, 60))
    assert outcome.loss(FAST) is None
    assert str(outcome.best.candidate) == "fast, batch 4"

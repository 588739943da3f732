"""What job=tune writes and shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfdist.report.results import Phases
from cfdist.tuning.candidates import Candidate, Variant
from cfdist.tuning.halving import Standing
from cfdist.tuning.results import print_tuning, tuning_parts, tuning_results
from cfdist.tuning.search import Outcome
from cfdist.tuning.trials import Found

ONE, TWO = Variant("openvino"), Variant("torch")


@pytest.fixture
def outcome() -> Outcome:
    standings = [Standing(Candidate(TWO, None, batch), reason="no memory") for batch in (1, 2)]
    standings += [
        Standing(Candidate(ONE, 1, batch), rate=float(batch), seconds=6.0, checked=batch > 13)
        for batch in range(1, 17)
    ]
    ap = {"easy": 0.5}
    return Outcome(ONE, {ONE: Found(1.0, ap), TWO: Found(reason="no memory")}, standings, True)


def results_of(compose, outcome, *settings: str, left_out=()):
    phases = Phases(0.0)
    phases.seconds = {"imports": 1.0, "checks": 1.0, "run": 7.0, "shut_down": 1.0}
    config = compose("job=tune", "dataset=wider_val", *settings)
    return tuning_results(config, outcome, dict(left_out), Path("conf/tuned.yaml"), phases)


def test_the_fastest_stands_first_and_what_is_out_says_why(compose, outcome, capsys):
    results = results_of(compose, outcome)
    assert (results.backend, results.batch, results.exit_code) == ("openvino", 16, 0)
    assert (results.seconds["start_up"], results.seconds["total"]) == (2.0, 10.0)
    found = results.extra["tuning"]
    assert found["best"] == {"backend.streams": 1, "model.batch": 16}
    rates = [one["pictures_per_second"] for one in found["candidates"]]
    assert rates == [*map(float, range(16, 0, -1)), None, None]
    assert found["pictures_per_second"] == max(rates[:16])
    assert found["numbers"]["openvino"] == {"ap": {"easy": 0.5}, "loss": 0.0, "reason": ""}
    print_tuning(results, "run it")
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("openvino")]
    assert rows[0] == ["openvino,", "1", "stream,", "batch", "16", "16.00", "6", "yes"]
    assert len(rows) == 12 and "and 4 more, see results.json" in lines
    assert "out: 2 candidates, such as torch, batch 1: no memory" in lines
    assert lines[-1] == "preset: conf/tuned.yaml; use it: run it"
    (table,) = tuning_parts(results).tables
    assert len(table.rows) == 18


def test_what_a_reader_should_know(compose, outcome):
    outcome.is_whole = False
    left_out = {"om": "no NPU"}
    notes = results_of(compose, outcome, "dataset=sample", left_out=left_out).notes
    assert notes[0] == "om: not tried: no NPU"
    assert "the time was over before the first 3 were run again" in notes[1]
    assert "embedded sample set" in notes[2]
    outcome.is_whole = True
    assert results_of(compose, outcome).notes == []

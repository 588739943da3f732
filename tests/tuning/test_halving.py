"""Who is measured how long, and who is called the fastest."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cfdist.tuning.halving import FIRST, Standing, check, halve, ranked


def never() -> bool:
    return False


def runs_of(rates: dict[str, float]) -> tuple[list, list]:
    """Standings of candidates with fixed rates, and the runs that `measure` was asked for."""
    return [Standing(name) for name in rates], []


def test_the_faster_half_is_run_twice_as_long():
    rates = {name: float(place) for place, name in enumerate("abcdefgh")}
    standings, runs = runs_of(rates)

    def measure(one, seconds, is_check):
        runs.append((one.candidate, seconds, is_check))
        one.rate, one.seconds = rates[one.candidate], seconds

    assert halve(standings, measure, 2.0, never) == 8.0
    rounds = {s: [name for name, seconds, _ in runs if seconds == s] for s in (2.0, 4.0, 8.0)}
    assert rounds == {2.0: list("abcdefgh"), 4.0: list("hgfe"), 8.0: list("hgf")}
    runs.clear()
    assert check(standings, measure, 8.0, never)
    assert runs == [(name, 8.0, True) for name in "hgf"]
    assert [one.candidate for one in ranked(standings)] == list("hgfedcba")


def test_one_that_fails_is_out():
    standings, runs = runs_of(dict.fromkeys("abcde", 1.0))

    def measure(one, seconds, is_check):
        runs.append(one.candidate)
        one.rate = None if one.candidate in "bd" else 1.0
        one.reason = "" if one.rate else "no memory"

    halve(standings, measure, 1.0, never)
    assert runs == list("abcde")  # three are left, which are the first
    assert [one.candidate for one in ranked(standings)] == list("ace")


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=6, max_size=6), min_size=1, max_size=9))
def test_the_fastest_has_the_highest_rate_of_all_however_these_vary(draws):
    """The rates of a machine that changes its speed: each run of a candidate gives another."""
    standings = [Standing(number) for number in range(len(draws))]
    turns = [itertools.cycle(one) for one in draws]

    def measure(one, seconds, is_check):
        one.rate, one.seconds = next(turns[one.candidate]), seconds

    seconds = halve(standings, measure, 1.0, never)
    assert check(standings, measure, seconds, never)
    first = ranked(standings)
    assert all(one.checked for one in first[:FIRST])
    assert first[0].rate == max(one.rate for one in standings)


def test_the_end_of_the_time_ends_it():
    standings, runs = runs_of(dict.fromkeys("abcde", 1.0))

    def measure(one, seconds, is_check):
        runs.append(one.candidate)
        one.rate = 1.0

    assert halve(standings, measure, 1.0, lambda: len(runs) == 2) == 1.0
    assert runs == ["a", "b"]
    assert not check(standings, measure, 1.0, lambda: len(runs) == 3)
    assert [one.checked for one in standings] == [True, False, False, False, False]

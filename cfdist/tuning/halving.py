"""Successive halving: short runs of all candidates, longer ones of the faster half.

Rates of short runs are noisy, and a machine may change its speed meanwhile. So the first ones are
run again until the first three have been, whoever these are by then: what is called the fastest has
the highest rate of all that were measured last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Generic, TypeVar

_C = TypeVar("_C")

FIRST = 3  # that are run again at the end


@dataclass
class Standing(Generic[_C]):
    """What is known of a candidate.

    Attributes:
        rate: Pictures a second in its last run; `None`: not yet, or it failed.
        seconds: How long that run was to take.
        checked: Whether it was run again at the end.
        reason: Why it is out; empty if it is not.
    """

    candidate: _C
    rate: float | None = None
    seconds: float = 0.0
    checked: bool = False
    reason: str = ""


# Runs a candidate for so many seconds, the last argument says whether again at the end; notes what
# it finds.
Measure = Callable[[Standing[_C], float, bool], None]


def ranked(standings: Iterable[Standing[_C]]) -> list[Standing[_C]]:
    """Those with a rate, the fastest first."""
    measured = (one for one in standings if one.rate is not None)
    return sorted(measured, key=lambda one: -(one.rate or 0.0))


def halve(
    standings: Sequence[Standing[_C]],
    measure: Measure[_C],
    seconds: float,
    is_over: Callable[[], bool],
) -> float:
    """Run all for some seconds, the faster half twice as long, and so on until `FIRST` are left.

    Returns:
        How long the last of these runs were to take.
    """
    left = list(standings)
    while True:
        for one in left:
            if is_over():
                return seconds
            measure(one, seconds, False)
        left = ranked(left)
        if len(left) <= FIRST:
            return seconds
        left = left[: max(FIRST, ceil(len(left) / 2))]
        seconds *= 2


def check(
    standings: Sequence[Standing[_C]],
    measure: Measure[_C],
    seconds: float,
    is_over: Callable[[], bool],
) -> bool:
    """Run the first ones again, until the first `FIRST` have been; returns whether they have."""
    while unchecked := [one for one in ranked(standings)[:FIRST] if not one.checked]:
        for one in unchecked:
            if is_over():
                return False
            measure(one, seconds, True)
            one.checked = True
    return True

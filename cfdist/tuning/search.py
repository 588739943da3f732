"""From candidates to the fastest one that keeps the reference's AP, within some minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cfdist.errors import UserError
from cfdist.report.screen import console
from cfdist.tuning.candidates import Candidate, Variant
from cfdist.tuning.halving import Standing, check, halve, ranked
from cfdist.tuning.trials import Found, Trials

# The first runs take so many seconds; a CPU does some dozens of pictures in them.
FIRST_SECONDS = 3.0
# The share of the time after which the first ones are run again, whatever was not tried.
_SEARCH_SHARE = 0.7

TIME_OVER = "not tried: the time was over (tune.minutes)"


@dataclass
class Outcome:
    """What was found.

    Attributes:
        reference: What the numbers are held against.
        variants: What was found of each variant's numbers, the reference's first.
        standings: Every candidate.
        is_whole: Whether the first ones were run again before the time was over.
    """

    reference: Variant
    variants: dict[Variant, Found] = field(default_factory=dict)
    standings: list[Standing[Candidate]] = field(default_factory=list)
    is_whole: bool = False

    @property
    def best(self) -> Standing[Candidate] | None:
        """The fastest one; `None` if none is left."""
        return next(iter(ranked(self.standings)), None)

    def loss(self, variant: Variant) -> float | None:
        """How far the lowest of its APs is below the reference's, a fraction; `None`: not known."""
        then, now = self.variants[self.reference].ap, self.variants[variant].ap
        if then is None or now is None:
            return None
        return max(then[name] - now[name] for name in then)


def search(
    trials: Trials, candidates: Sequence[Candidate], reference: Variant, limits: tuple[float, float]
) -> Outcome:
    """Look for the fastest candidate.

    Args:
        trials: Runs them.
        candidates: What to try.
        reference: What their numbers are held against.
        limits: The tolerance, a fraction of AP, and the minutes.

    Raises:
        UserError: the reference does not run.
    """
    started, (tolerance, minutes) = time.monotonic(), limits

    def is_over(share: float) -> Callable[[], bool]:
        return lambda: time.monotonic() - started > share * 60 * minutes

    outcome = Outcome(reference, standings=[Standing(one) for one in candidates])
    for variant in dict.fromkeys([reference, *(one.variant for one in candidates)]):
        is_late = variant != reference and is_over(_SEARCH_SHARE)()
        found = Found(reason=TIME_OVER) if is_late else trials.accuracy(variant)
        outcome.variants[variant] = found
        if variant == reference and found.reason:
            raise UserError(f"job=tune: the reference, {reference}: {found.reason}")
        console.inform(f"numbers of {variant}: {_numbers(outcome, variant)}")
    left = []
    for one in outcome.standings:
        one.reason = _reason_against(outcome, one.candidate.variant, tolerance)
        left += [] if one.reason else [one]

    def measure(one: Standing[Candidate], seconds: float, is_check: bool) -> None:
        trials.measure(one, seconds, is_check)
        rate = one.reason if one.rate is None else f"{one.rate:.2f} pictures/s"
        passed = time.monotonic() - started
        console.inform(
            f"{passed / 60:.1f} of {minutes:g} min: {one.candidate}, {seconds:g} s"
            f"{' again' if is_check else ''}: {rate}"
        )

    seconds = halve(left, measure, FIRST_SECONDS, is_over(_SEARCH_SHARE))
    outcome.is_whole = check(left, measure, seconds, is_over(1.0))
    for one in left:
        if one.rate is None and not one.reason:
            one.reason = TIME_OVER
    return outcome


def _reason_against(outcome: Outcome, variant: Variant, tolerance: float) -> str:
    """Why a variant is not to be measured; empty if it is."""
    if reason := outcome.variants[variant].reason:
        return reason
    loss = outcome.loss(variant)
    if loss is None or loss <= tolerance:
        return ""
    return f"its AP is {100 * loss:.2f} points below the reference's (tune.tolerance)"


def _numbers(outcome: Outcome, variant: Variant) -> str:
    found = outcome.variants[variant]
    if found.ap is None:
        return found.reason or "simulated, none"
    aps = " / ".join(f"{100 * value:.2f}" for value in found.ap.values())
    whose = "; the reference" if variant == outcome.reference else ""
    return f"AP {aps} %{whose}"

"""What job=tune writes and shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfdist.config import Config
from cfdist.report import screen
from cfdist.report.page.run import OwnParts
from cfdist.report.page.tables import Table, number, text
from cfdist.report.results import START_UP, Phases, Results
from cfdist.storage import shown
from cfdist.tuning.candidates import Candidate
from cfdist.tuning.halving import FIRST, Standing, ranked
from cfdist.tuning.search import Outcome

_COLUMNS = ("pictures/s", "run for, s", "run again")
_CAPTION = "the fastest first, by their last run; those that led were run again at the end"
_MOST_SHOWN = 12  # rows on the screen


def tuning_results(
    config: Config, outcome: Outcome, left_out: dict[str, str], preset: Path, phases: Phases
) -> Results:
    """The figures of a search that has found something, as they are written and shown.

    Args:
        config: The run's.
        outcome: What was found.
        left_out: Backends that were not tried -> why.
        preset: The file that was written.
        phases: Those of `START_UP` that there are, "run" and "shut_down".
    """
    best = outcome.best
    assert best is not None
    batch, variant = best.candidate.batch, best.candidate.variant
    notes = [f"{name}: not tried: {reason}" for name, reason in left_out.items()]
    if not outcome.is_whole:
        notes.append(
            f"the time was over before the first {FIRST} were run again; raise tune.minutes, or go "
            "on with fewer candidates (tune.batches)"
        )
    if config.dataset.kind == "sample" and variant.backend != "simulated":
        notes.append(
            "the AP is that of the embedded sample set, which says little; give pictures of your "
            "own (dataset=wider_val dataset.root=... dataset.ground_truth=...)"
        )
    return Results(
        job="tune",
        seconds={
            "total": sum(phases.seconds.values()),
            "start_up": sum(phases.seconds.get(name, 0.0) for name in START_UP),
            "run": phases.seconds["run"],
            "evaluation": None,
            "shut_down": phases.seconds["shut_down"],
        },
        backend=variant.backend,
        batch=batch,
        simulated=variant.backend == "simulated",
        config=config.model_dump(),
        notes=notes,
        extra={
            "tuning": {
                "preset": shown(preset),
                "best": best.candidate.settings(),
                "pictures_per_second": best.rate,
                "reference": str(outcome.reference),
                "is_whole": outcome.is_whole,
                "numbers": {
                    str(one): {"ap": found.ap, "loss": outcome.loss(one), "reason": found.reason}
                    for one, found in outcome.variants.items()
                },
                "candidates": [_entry(one) for one in _in_order(outcome)],
            }
        },
    )


def _in_order(outcome: Outcome) -> list[Standing[Candidate]]:
    """The fastest first, those without a rate last."""
    return ranked(outcome.standings) + [one for one in outcome.standings if one.rate is None]


def _entry(one: Standing[Candidate]) -> dict[str, Any]:
    return {
        "name": str(one.candidate),
        "settings": one.candidate.settings(),
        "pictures_per_second": one.rate,
        "seconds": one.seconds,
        "again": one.checked,
        "reason": one.reason,
    }


def print_tuning(results: Results, command: str) -> None:
    """The candidates, what should be known, and what to type next."""
    if results.simulated:
        screen.print_simulated()
    found = results.extra["tuning"]
    candidates: Sequence[dict[str, Any]] = found["candidates"]
    table = screen.titled_table(f"job=tune: {_CAPTION}", ["candidate"], _COLUMNS)
    measured = [one for one in candidates if one["pictures_per_second"] is not None]
    for one in measured[:_MOST_SHOWN]:
        cells = (f"{one['pictures_per_second']:.2f}", f"{one['seconds']:g}")
        table.add_row(one["name"], *cells, "yes" if one["again"] else "")
    screen.print_compact(table)
    if len(measured) > _MOST_SHOWN:
        screen.console.print(f"and {len(measured) - _MOST_SHOWN} more, see results.json")
    reasons: dict[str, list[str]] = {}
    for one in candidates:
        if one["reason"]:
            reasons.setdefault(one["reason"], []).append(one["name"])
    for reason, names in reasons.items():
        what = names[0] if len(names) == 1 else f"{len(names)} candidates, such as {names[0]}"
        screen.console.print(f"out: {what}: {reason}")
    screen.print_remarks(results)
    screen.console.print(f"preset: {found['preset']}; use it: {command}")


def tuning_parts(results: Results) -> OwnParts:
    """The same for the page."""
    rows = [
        [
            text(one["name"]),
            number(one["pictures_per_second"], 2),
            number(one["seconds"] or None, 0),
            text("yes" if one["again"] else None),
            text(one["reason"] or None),
        ]
        for one in results.extra["tuning"]["candidates"]
    ]
    return OwnParts([Table(f"Candidates: {_CAPTION}", ("candidate", *_COLUMNS, "out"), rows)])

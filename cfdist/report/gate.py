"""The AP that a model should have, held against the measured one."""

from __future__ import annotations

from typing import Any

from cfdist import backends
from cfdist.command.exit_codes import ExitCode
from cfdist.config import Config
from cfdist.errors import UserError
from cfdist.report.results import Results
from cfdist.widerface.ground_truth import DIFFICULTIES


def refuse_empty(config: Config) -> None:
    """A gate that nothing can miss would always be open.

    Raises:
        UserError: `eval.gate` without an expected AP, on the sample set, or without a model.
    """
    if config.eval.gate:
        backends.refuse_simulated(config.backend.name, "eval.gate")
    expected = config.model.expected
    if config.eval.gate and all(getattr(expected, name) is None for name in DIFFICULTIES):
        raise UserError(
            f"eval.gate: model={config.model.name} has no expected AP; give "
            "model.expected.easy=... (medium, hard)"
        )
    if config.eval.gate and config.dataset.kind == "sample":
        raise UserError("eval.gate: the sample set has no expected AP; use dataset=wider_val")


def expected(config: Config, ap: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """What the model should reach; the sample set says nothing about that."""
    if config.dataset.kind == "sample":
        return None
    wanted = config.model.expected
    values = {name: getattr(wanted, name) for name in DIFFICULTIES}
    given = {name: value for name, value in values.items() if value is not None}
    return hold_against(ap, given, wanted.protocol, wanted.tolerance)


def hold_against(
    ap: dict[str, dict[str, float]], expected: dict[str, float], protocol: str, tolerance: float
) -> dict[str, Any] | None:
    """The expected APs and whether the measured ones reach them.

    Args:
        ap: Protocol -> difficulty -> measured AP.
        expected: Difficulty -> expected AP; difficulties without one are left out.
        protocol: Which protocol's the expected ones are.
        tolerance: How far below the expected AP a measured one may be.

    Returns:
        The results' `expected` section; `None` where nothing is expected.
    """
    if not expected:
        return None
    met = all(ap[protocol][name] >= value - tolerance for name, value in expected.items())
    return {"protocol": protocol, "ap": expected, "tolerance": tolerance, "met": met}


def exit_code(config: Config, results: Results) -> int:
    """What the process ends with: 5 where `eval.gate` is set and the AP misses what is expected."""
    if config.eval.gate and results.expected and not results.expected["met"]:
        return ExitCode.GATE_MISSED
    return results.exit_code

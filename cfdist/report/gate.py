"""The AP that a model should have, compared with the measured one."""

from __future__ import annotations

from typing import Any

from cfdist import backends
from cfdist.config import Config
from cfdist.errors import UserError
from cfdist.widerface.ground_truth import DIFFICULTIES


def refuse_empty(config: Config) -> None:
    """Refuse a gate that no result can miss.

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
    """The results' `expected` section: the expected APs, and whether the measured ones reach them.

    Args:
        config: With `model.expected`; a difficulty without an expected AP is left out.
        ap: Protocol -> difficulty -> measured AP, a fraction.

    Returns:
        `None` if nothing is expected, as of the sample set.
    """
    wanted = config.model.expected
    given = {name: getattr(wanted, name) for name in DIFFICULTIES}
    given = {name: value for name, value in given.items() if value is not None}
    if config.dataset.kind == "sample" or not given:
        return None
    measured = ap[wanted.protocol]
    met = all(measured[name] >= value - wanted.tolerance for name, value in given.items())
    return {
        "protocol": wanted.protocol,
        "ap": given,
        "tolerance": wanted.tolerance,
        "met": met,
    }

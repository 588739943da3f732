"""The one figure of a run that a sweeper, such as Hydra's for Optuna, looks for the best of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cfdist.errors import ExitCode, UserError

RATE = "pictures_per_second"

_PLAIN_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def objective_of(results: Mapping[str, Any]) -> float | None:
    """The figure that `objective` names.

    Returns:
        An AP by the chosen protocol, a fraction, or the pictures a second from the first that was
        handed out to the last that was finished; 0 for the latter if the run misses `eval.gate`.
        `None` without a figure: none is asked for, pictures have failed, or nothing was done.
    """
    from cfdist.report.results import verdict  # every command imports this module, few need it

    name, code = results["config"]["objective"], verdict(dict(results))[0]
    if name is None or code not in (ExitCode.DONE, ExitCode.GATE_MISSED):
        return None
    if name == RATE:
        seconds = results["seconds"]["run"]
        pictures = sum(device["pictures"] for device in results["devices"])
        return pictures / seconds * (code == ExitCode.DONE) if pictures and seconds else None
    return next((float(ap[name]) for ap in results["ap"].values()), None)


def refuse_aimless(config: DictConfig) -> None:
    """Refuse a sweeper that looks for the best of no figure.

    Raises:
        UserError: `objective` is not given.
    """
    sweeper = OmegaConf.select(config, "hydra.sweeper._target_") or _PLAIN_SWEEPER
    if sweeper != _PLAIN_SWEEPER and OmegaConf.select(config, "objective") is None:
        raise UserError(
            "objective: not given; this sweeper looks for the best of a figure: objective=hard, "
            f"medium, easy or {RATE}"
        )

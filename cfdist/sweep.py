"""What happens around a sweep (Hydra's multirun): its folder is guarded, its end summed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cfdist.command import cli
from cfdist.command.exit_codes import ExitCode
from cfdist.distributed import cluster
from cfdist.errors import UserError
from cfdist.run_folder import claim_sweep, read_results

if TYPE_CHECKING:
    from cfdist.report.sweep import Member


class SweepSummary(Callback):
    """Refuses a folder that a sweep may not have; leaves the members' summary in it at the end.

    What a callback raises becomes a warning in Hydra, which then goes on; only `SystemExit` and
    interruptions pass. Hydra calls the end only where the sweep was not interrupted.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the sweep's folder, before any member starts."""
        try:
            if not config.output_dir:
                raise UserError("output_dir: must not be empty")
            cli.held.enter_context(claim_sweep(Path(config.hydra.sweep.dir)))
            cluster.keep_sessions()
            cli.held.callback(cluster.close_kept_session)
        except UserError as error:
            raise SystemExit(cli.fail(ExitCode.BAD_INPUT, str(error))) from None
        except OSError as error:
            reason = cli.os_reason(error, config.output_dir)
            raise SystemExit(cli.fail(ExitCode.BAD_INPUT, reason)) from None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show and write the summary, unless no member has results."""
        cluster.close_kept_session()
        folder = Path(config.hydra.sweep.dir)
        try:
            members = [_member(outcome) for outcome in cli.outcomes]
            if any(member.results for member in members):
                from cfdist.report import sweep

                sweep.summarise(members, folder)
        except Exception as error:
            reason = " ".join(str(error).split())
            message = (
                f"internal error: no summary of the sweep: {type(error).__name__}: {reason}; what "
                f"its runs found is in {folder}"
            )
            raise SystemExit(cli.fail(ExitCode.INTERNAL, message)) from error


def _member(outcome: cli.JobOutcome) -> Member:
    from cfdist.report.sweep import Member

    results = read_results(outcome.folder) if outcome.reason is None else None
    return Member(
        outcome.number,
        overrides_by_key(outcome.overrides),
        outcome.exit_code,
        outcome.reason,
        results,
    )


def overrides_by_key(overrides: tuple[str, ...]) -> dict[str, str]:
    """Hydra's `key=value` texts as key -> value, as a person would write the value."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {override.key_or_group: override.value() for override in parsed}
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }

"""What Hydra calls at the start and at the end of a sweep.

Every command imports this module, and few are sweeps: what only these need is imported late.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from cfdist.command import cli
from cfdist.command.objective import refuse_aimless
from cfdist.command.resuming import going_on, refuse_finished_sweep
from cfdist.command.run_folder import HYDRA_RECORD, TO_SWEEP, claim_sweep, read_results
from cfdist.command.uploading import deliver, prepare, send
from cfdist.config import literal, prepare_override
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.files import SWEEP_CSV, redacted, write_text
from cfdist.storage import path_or_uri, uri_of

if TYPE_CHECKING:
    from cfdist.sweep.runs import RunSummary


class SweepSummary(Callback):
    """Claims the sweep's folder at the start; writes the summary of its runs at the end.

    Hydra turns what a callback raises into a warning and goes on; only `SystemExit` and
    interruptions pass. Hydra does not call the end of a sweep that was interrupted.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the sweep's folder before any run starts."""
        try:
            if not config.output_dir:
                raise UserError("output_dir: must not be empty")
            path_or_uri(str(config.output_dir), "output_dir")  # refuses a secret
            refuse_aimless(config)
            _prepare_params(config)
            folder = Path(config.hydra.sweep.dir)
            if uri_of(folder) and (folder / SWEEP_CSV).exists():
                deliver(folder)  # what an earlier command could not
                refuse_finished_sweep(folder)
            prepare(folder, TO_SWEEP)
            cli.held.enter_context(claim_sweep(folder))
        except (UserError, StoppedError, OSError) as error:
            raise SystemExit(cli.fail(*cli.explain(error, config.hydra.sweep.dir))) from None
        from cfdist.distributed import session
        from cfdist.sweep.checking import checked_ahead

        cli.held.enter_context(checked_ahead())
        session.share_sessions()
        cli.held.callback(session.close_shared_session)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Take the secrets out of the record that Hydra has written just before its first run."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        path = Path(config.hydra.sweep.dir, HYDRA_RECORD)
        with contextlib.suppress(OSError):
            text = path.read_text()
            if text != redacted(text):
                write_text(path, text)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show and write the summary, unless no run has results."""
        from cfdist.distributed import session

        session.close_shared_session()
        folder = Path(config.hydra.sweep.dir)
        if not cli.outcomes:
            message = "a sweep without a run: nothing fits its values (glob, range)"
            raise SystemExit(cli.fail(ExitCode.BAD_INPUT, message))
        try:
            runs = finished_runs()
            if any(run.figures for run in runs):
                from cfdist.sweep.tables import write_summary

                write_summary(runs, folder)
                if OmegaConf.select(config, "report"):
                    from cfdist.sweep.page import write_sweep_report

                    write_sweep_report(runs, folder)
            if uri_of(folder):
                send(folder)
        except StoppedError as error:
            found, reason = cli.explain(error)
            code = max(found, *(outcome.exit_code for outcome in cli.outcomes))
            raise SystemExit(cli.fail(code, f"{reason}{going_on(folder)}")) from None
        except Exception as error:
            reason = " ".join(str(error).split())
            message = (
                f"internal error: no summary of the sweep: {type(error).__name__}: {reason}; the "
                f"results of its runs are in {folder}"
            )
            raise SystemExit(cli.fail(ExitCode.INTERNAL, message)) from error


def _prepare_params(config: DictConfig) -> None:
    """Put the texts of a preset's sweep, `hydra.sweeper.params`, into quotes.

    Raises:
        UserError: a value is no text where one is wanted; YAML has read it as something else.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    for key, value in params.items():
        setting = f"{key}={value}"
        prepared = prepare_override(setting, is_multirun=True)
        if prepared == setting:
            continue
        if not isinstance(value, str):
            raise UserError(
                f"hydra.sweeper.params.{setting}: must be text; put it into quotes in the YAML file"
            )
        # Hydra resolves it once more on its way.
        with flag_override(config, ["readonly", "struct"], [False, False]):
            params[key] = literal(prepared.partition("=")[2])


def finished_runs() -> list[RunSummary]:
    """The runs of this command, with the figures of each `results.json`."""
    from cfdist.sweep.runs import summarise_run

    return [
        replace(
            summarise_run(
                number,
                overrides_by_key(outcome.overrides),
                outcome.exit_code,
                outcome.reason,
                # A run with a reason has no results, and the file may be an earlier run's.
                None if outcome.reason else _results(outcome),
            ),
            folder=outcome.folder,
        )
        for number, outcome in enumerate(cli.outcomes)
    ]


def _results(outcome: cli.JobOutcome) -> dict[str, Any] | None:
    """A run's results; `None` for a dry run, which leaves none."""
    return None if outcome.is_dry or not outcome.folder else read_results(outcome.folder)


def overrides_by_key(overrides: tuple[str, ...]) -> dict[str, str]:
    """Hydra's `key=value` texts as key -> value, as a person would write the value."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {override.key_or_group: override.value() for override in parsed}
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
    }

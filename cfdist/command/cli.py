"""From the command line to a job and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfdist import config
from cfdist.command.arguments import prepare_arguments
from cfdist.command.run_folder import claim, finished_results
from cfdist.config.installation import CONFIG_FOLDER, load_job
from cfdist.distributed import session
from cfdist.errors import ExitCode, TerminatedError, UserError, raise_terminated
from cfdist.files import LOG
from cfdist.machine import process_age

# Set by run.sh: when the command began, its installation left out.
STARTED_VARIABLE = "CFDIST_STARTED"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOutcome:
    """How a job of this command ended.

    Attributes:
        number: Its number in a multirun, from 0; `None` for the only job of a command.
        overrides: What was set for it, `key=value` as Hydra writes it.
        folder: Its folder; `None` where the settings were refused before it was known.
        exit_code: What the process would end with.
        reason: Why it has no results, one line; `None` where it has.
    """

    number: int | None
    overrides: tuple[str, ...]
    folder: Path | None
    exit_code: int
    reason: str | None = None


# Hydra calls `run_job` and the sweep's callback without a place for state: these two are shared.
outcomes: list[JobOutcome] = []  # one for each job of this command that came to an end
held = contextlib.ExitStack()  # what is held until the command's end, such as a sweep's folder


def main() -> int:
    """Run the command line `sys.argv`; one that is refused becomes one line on stderr.

    Returns:
        The process's exit code.
    """
    # Hydra would print its errors itself, over several lines, and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, raise_terminated)
    config.register(with_help=not {"-h", "--help"}.isdisjoint(sys.argv))
    run = hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
    try:
        sys.argv[1:] = prepare_arguments(sys.argv[1:])
        with held:
            run(run_job)()
    except UserError as error:
        return fail(ExitCode.BAD_INPUT, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return fail(ExitCode.BAD_INPUT, config.one_line(error))
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption)
    except OSError as error:
        return fail(ExitCode.BAD_INPUT, os_reason(error))
    return max((outcome.exit_code for outcome in outcomes), default=ExitCode.DONE)


def run_job(composed: DictConfig) -> None:
    """Check the composed configuration and run its job; Hydra calls it once a job.

    It raises nothing but an interruption, so that in a multirun one job's failure does not stop
    the others.
    """
    started = _start_time()
    output, reason = None, None
    try:
        checked = config.load(composed)
        output = run_output(checked.output_dir)
        checked.output_dir = composed.output_dir = str(output)
        code, reason = _run(checked, OmegaConf.to_yaml(composed, resolve=True), output, started)
    except KeyboardInterrupt as interruption:
        again = output.parent if output and _run_number() is not None else output
        where = f"; output_dir={again} goes on where this stopped" if again else ""
        fail(_interrupted(interruption), f"interrupted{where}")
        raise
    except UserError as error:
        code, reason = ExitCode.BAD_INPUT, str(error)
    except OmegaConfBaseException as error:
        code, reason = ExitCode.BAD_INPUT, config.one_line(error)
    except OSError as error:
        code, reason = ExitCode.BAD_INPUT, os_reason(error, output)
    except Exception as error:
        traceback.print_exc()
        code, reason = ExitCode.INTERNAL, _internal_reason(error)
    if reason is not None:
        fail(code, reason)
    overrides = tuple(HydraConfig.get().overrides.task)
    outcomes.append(JobOutcome(_run_number(), overrides, output, code, reason))


def _run(
    checked: config.Config, config_yaml: str, output: Path, started: float
) -> tuple[int, str | None]:
    """The job's exit code, and the reason where it broke down."""
    if _run_number() is not None and (results := finished_results(output, config_yaml)):
        from cfdist.report.results import verdict

        print(f"{output}: done by an earlier command")
        return verdict(results)[0], None
    with claim(output, config_yaml):
        try:
            return load_job(checked.job).main(checked, output, started), None
        except UserError:
            raise
        except Exception as error:
            log.exception("the job failed")
            # The next run of a sweep gets a new session: this one may be what is broken.
            with contextlib.suppress(Exception):
                session.close_shared_session()
            reason = f"{_internal_reason(error)}; the traceback is in {output / LOG}"
            return ExitCode.INTERNAL, reason


def _internal_reason(error: Exception) -> str:
    last = (str(error).strip().splitlines() or [""])[-1]
    return f"internal error: {type(error).__name__}: {last}"


def os_reason(error: OSError, output: str | Path | None = None) -> str:
    """Which file, or else which folder, the system has refused, and why."""
    where = error.filename or (f"output_dir={output}" if output else "output_dir")
    return (
        f"{where}: {error.strerror or error}; make room and see to the permissions, or choose "
        "another output_dir"
    )


def run_output(output_dir: str) -> Path:
    """The run's folder: `output_dir`, or in a multirun the job's own folder in it."""
    folder = Path(output_dir).expanduser().absolute()
    number = _run_number()
    return folder if number is None else folder / str(number)


def _run_number() -> int | None:
    """The job's number in a multirun, from 0; `None` outside one."""
    current = HydraConfig.get()
    return current.job.num if current.mode == RunMode.MULTIRUN else None


def _start_time() -> float:
    """When the command began, seconds since the epoch.

    The interpreter's start for the first job (run.sh says when: the process is older, it has
    installed the environment before), now for the further ones of a multirun.
    """
    told = os.environ.pop(STARTED_VARIABLE, None)
    if outcomes:
        return time.time()
    with contextlib.suppress(ValueError):
        if told:
            return float(told)
    return time.time() - process_age()


def _interrupted(interruption: KeyboardInterrupt) -> ExitCode:
    is_terminated = isinstance(interruption, TerminatedError)
    return ExitCode.TERMINATED if is_terminated else ExitCode.INTERRUPTED


def fail(code: int, message: str) -> int:
    """Say what went wrong, on one line; returns the exit code."""
    print(f"cfdist: {message}", file=sys.stderr)
    return code

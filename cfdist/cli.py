"""From the command line to a job and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfdist import config
from cfdist.distributed import session
from cfdist.errors import TerminatedError, UserError, raise_terminated
from cfdist.files import LOG
from cfdist.machine import process_age
from cfdist.run_folder import claim, finished_results

EXIT_INTERNAL = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# Set by run.sh: when the command began, its installation left out.
STARTED_VARIABLE = "CFDIST_STARTED"

# What Hydra's grammar takes as it is, or the person has quoted already.
_PLAIN_VALUE = re.compile(r"[\w./:+-]*|'.*'|\".*\"")

HYDRA_OPTIONS = frozenset(
    """-h --help --hydra-help --version -c --cfg --resolve -p --package -r --run -m --multirun
    -sc --shell-completion -cp --config-path -cn --config-name -cd --config-dir
    --experimental-rerun -i --info""".split()  # noqa: SIM905 (reads better than a list)
)

_MULTIRUN = ("-m", "--multirun")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
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


# One for each job of this command that came to an end.
outcomes: list[Outcome] = []

# What is held until the command's end, such as a sweep's folder.
held = contextlib.ExitStack()


def run_job(composed: DictConfig) -> None:
    """Validate the composed configuration and run its job; called once a job by Hydra.

    Nothing but an interruption is raised, so that in a multirun one job's failure does not stop
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
        again = output.parent if output and _member_number() is not None else output
        where = f"; output_dir={again} goes on where this stopped" if again else ""
        fail(_interrupted(interruption), f"interrupted{where}")
        raise
    except UserError as error:
        code, reason = EXIT_BAD_INPUT, str(error)
    except OmegaConfBaseException as error:
        code, reason = EXIT_BAD_INPUT, config.one_line(error)
    except OSError as error:
        code, reason = EXIT_BAD_INPUT, os_reason(error, output)
    except Exception as error:
        traceback.print_exc()
        code, reason = EXIT_INTERNAL, _internal_reason(error)
    if reason is not None:
        fail(code, reason)
    overrides = tuple(HydraConfig.get().overrides.task)
    outcomes.append(Outcome(_member_number(), overrides, output, code, reason))


def _run(
    checked: config.Config, config_yaml: str, output: Path, started: float
) -> tuple[int, str | None]:
    """The job's exit code, and the reason where it broke down."""
    if _member_number() is not None and (results := finished_results(output, config_yaml)):
        from cfdist.report.results import verdict

        print(f"{output}: done by an earlier command")
        return verdict(results)[0], None
    with claim(output, config_yaml):
        try:
            job = importlib.import_module(f"jobs.{checked.job}")
            return job.main(checked, output, started), None
        except UserError:
            raise
        except Exception as error:
            log.exception("the job failed")
            # The next member of a sweep gets a new session: this one may be what is broken.
            with contextlib.suppress(Exception):
                session.close_shared_session()
            return EXIT_INTERNAL, f"{_internal_reason(error)}; the traceback is in {output / LOG}"


def _internal_reason(error: Exception) -> str:
    last = (str(error).strip().splitlines() or [""])[-1]
    return f"internal error: {type(error).__name__}: {last}"


def os_reason(error: OSError, output: Path | None = None) -> str:
    """Which file, or else which folder, the system has refused, and why."""
    where = error.filename or (f"output_dir={output}" if output else "output_dir")
    return (
        f"{where}: {error.strerror or error}; make room and see to the permissions, or choose "
        "another output_dir"
    )


def run_output(output_dir: str) -> Path:
    """The run's folder: `output_dir`, or in a multirun the job's own folder in it."""
    folder = Path(output_dir).expanduser().absolute()
    number = _member_number()
    return folder if number is None else folder / str(number)


def _member_number() -> int | None:
    hydra_config = HydraConfig.get()
    return hydra_config.job.num if hydra_config.mode == RunMode.MULTIRUN else None


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


def launch(hydra_main: Callable[[], None]) -> int:
    """Run Hydra's main; a command line that it refuses becomes one line on stderr.

    Returns:
        The process's exit code.
    """
    # Hydra would print its errors itself, over several lines, and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        sys.argv[1:] = prepare_arguments(sys.argv[1:])
        with held:
            hydra_main()
    except UserError as error:
        return fail(EXIT_BAD_INPUT, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return fail(EXIT_BAD_INPUT, config.one_line(error))
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption)
    except OSError as error:
        return fail(EXIT_BAD_INPUT, os_reason(error))
    return max((outcome.exit_code for outcome in outcomes), default=0)


def _interrupted(interruption: KeyboardInterrupt) -> int:
    is_terminated = isinstance(interruption, TerminatedError)
    return EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Arguments as Hydra wants them: paths quoted, so that a person need not; no null groups.

    Raises:
        UserError: an option that does not exist, or a group's choice that is no name.
    """
    paths = config.path_keys()
    is_multirun = _asks_for_multirun(arguments)
    prepared = []
    for argument in arguments:
        if argument.startswith("-") and argument.partition("=")[0] not in HYDRA_OPTIONS:
            raise UserError(
                f"{argument}: no such option; settings are key=value, {config.SEE_HELP}"
            )
        key, equals, value = argument.partition("=")
        if equals and not key:
            raise UserError(f"{argument}: not of the form key=value; {config.SEE_HELP}")
        is_sweep = is_multirun and "," in value
        if equals and key in paths and not is_sweep and not _PLAIN_VALUE.fullmatch(value):
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            argument = f"{key}='{escaped}'"
        prepared.append(_with_named_choices(argument))
    # Behind a setting, Hydra's parser would take an option's settings for something unknown.
    return sorted(prepared, key=lambda argument: argument not in _MULTIRUN)


def _with_named_choices(argument: str) -> str:
    """A setting of a group as Hydra takes it, which fails on what is no name; others as they are.

    "experiment=null", no experiment, becomes the empty list of experiments.

    Raises:
        UserError: a choice is no name.
    """
    key, equals, value = argument.partition("=")
    group = key.lstrip("+").partition("@")[0]
    choices = config.group_choices(group)
    if not equals or not choices:
        return argument
    if group == "experiment":
        names = ["[]" if name.strip().lower() == "null" else name for name in value.split(",")]
        argument = f"{key}={','.join(names)}"
    for choice in _choices_of(argument):
        # Hydra reads a mapping as settings inside the group, and refuses those itself.
        if not isinstance(choice, (str, dict)):
            raise UserError(config.no_such_choice(group, json.dumps(choice), choices))
    return argument


def _choices_of(argument: str) -> list[Any]:
    """The values of a setting, sweeps and lists laid open; none where Hydra cannot read it."""
    try:
        override = OverridesParser.create().parse_override(argument)
        is_sweep = override.is_sweep_override()
        values = list(override.sweep_iterator()) if is_sweep else [override.value()]
    except HydraException:
        return []
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _asks_for_multirun(arguments: list[str]) -> bool:
    """Whether by an option, or by an experiment that is a sweep."""
    for argument in arguments:
        if argument in (*_MULTIRUN, "hydra.mode=MULTIRUN"):
            return True
        group, _, name = argument.partition("=")
        experiment = config.CONFIG_FOLDER / group / f"{name}.yaml"
        if (
            group == "experiment"
            and experiment.is_file()
            and OmegaConf.select(OmegaConf.load(experiment), "hydra.mode") == "MULTIRUN"
        ):
            return True
    return False


def fail(code: int, message: str) -> int:
    """Say what went wrong, on one line; returns the exit code."""
    print(f"cfdist: {message}", file=sys.stderr)
    return code

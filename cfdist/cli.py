"""From the command line to a job and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfdist import config
from cfdist.errors import TerminatedError, UserError, raise_terminated
from cfdist.run_folder import LOG, claim

EXIT_INTERNAL = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# Set by run.sh: when the command began, its installation left out.
STARTED_VARIABLE = "CFDIST_STARTED"

# What Hydra's grammar takes as it is, or the person has quoted already.
_PLAIN_VALUE = re.compile(r"[\w./:~+-]*|'.*'|\".*\"")

HYDRA_OPTIONS = frozenset(
    """-h --help --hydra-help --version -c --cfg --resolve -p --package -r --run -m --multirun
    -sc --shell-completion -cp --config-path -cn --config-name -cd --config-dir
    --experimental-rerun -i --info""".split()  # noqa: SIM905 (reads better than a list)
)

log = logging.getLogger(__name__)

_exit_codes: list[int] = []


def run_job(composed: DictConfig) -> None:
    """Validate the composed configuration and run its job; called once a job by Hydra.

    Nothing but an interruption is raised, so that in a multirun one job's failure does not stop
    the others.
    """
    started = _start_time()
    output = None
    try:
        checked = config.load(composed)
        output = run_output(checked.output_dir)
        checked.output_dir = str(output)
        with claim(output, OmegaConf.to_yaml(composed, resolve=True)):
            code = _run(checked, output, started)
    except KeyboardInterrupt as interruption:
        where = f"; output_dir={output} goes on where this stopped" if output else ""
        _fail(_interrupted(interruption), f"interrupted{where}")
        raise
    except UserError as error:
        code = _fail(EXIT_BAD_INPUT, str(error))
    except OmegaConfBaseException as error:
        code = _fail(EXIT_BAD_INPUT, config.one_line(error))
    _exit_codes.append(code)


def _run(checked: config.Config, output: Path, started: float) -> int:
    try:
        return importlib.import_module(f"jobs.{checked.job}").main(checked, output, started)
    except UserError:
        raise
    except Exception as error:
        log.exception("the job failed")
        last = (str(error).strip().splitlines() or [""])[-1]
        return _fail(
            EXIT_INTERNAL,
            f"internal error: {type(error).__name__}: {last}; the traceback is in {output / LOG}",
        )


def run_output(output_dir: str) -> Path:
    """The run's folder: `output_dir`, or in a multirun the job's own folder in it."""
    folder = Path(output_dir).expanduser().absolute()
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return folder / str(hydra_config.job.num)
    return folder


def _start_time() -> float:
    """When the command began, seconds since the epoch.

    The interpreter's start for the first job (run.sh says when: the process is older, it has
    installed the environment before), now for the further ones of a multirun.
    """
    told = os.environ.pop(STARTED_VARIABLE, None)
    if _exit_codes:
        return time.time()
    with contextlib.suppress(ValueError):
        if told:
            return float(told)
    return psutil.Process().create_time()


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
        hydra_main()
    except UserError as error:
        return _fail(EXIT_BAD_INPUT, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(EXIT_BAD_INPUT, config.one_line(error))
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption)
    except OSError as error:
        return _fail(EXIT_BAD_INPUT, f"{error.filename or 'output_dir'}: {error.strerror}")
    return max(_exit_codes, default=0)


def _interrupted(interruption: KeyboardInterrupt) -> int:
    is_terminated = isinstance(interruption, TerminatedError)
    return EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Arguments as Hydra wants them: paths quoted, so that a person need not.

    Raises:
        UserError: an option that does not exist.
    """
    paths = config.path_keys()
    is_multirun = any(argument in ("-m", "--multirun") for argument in arguments)
    prepared = []
    for argument in arguments:
        if argument.startswith("-") and argument.partition("=")[0] not in HYDRA_OPTIONS:
            raise UserError(
                f"{argument}: no such option; settings are key=value, "
                "`python main.py --help` explains every key"
            )
        key, equals, value = argument.partition("=")
        is_sweep = is_multirun and "," in value
        if equals and key in paths and not is_sweep and not _PLAIN_VALUE.fullmatch(value):
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            argument = f"{key}='{escaped}'"
        prepared.append(argument)
    return prepared


def _fail(code: int, message: str) -> int:
    print(f"cfdist: {message}", file=sys.stderr)
    return code

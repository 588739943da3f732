"""From the command line to a job and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cfdist import config
from cfdist.errors import UserError

EXIT_INTERNAL = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

log = logging.getLogger(__name__)

_exit_codes: list[int] = []


def run_job(composed: DictConfig) -> None:
    """Validate the composed configuration and run its job; called once a job by Hydra.

    Nothing is raised, so that in a multirun one job's failure does not stop the others.
    """
    # The first job's time includes the interpreter's start; those of a multirun start here.
    started = time.time() if _exit_codes else psutil.Process().create_time()
    output = Path(HydraConfig.get().runtime.output_dir)
    try:
        checked = config.load(composed)
        job = importlib.import_module(f"jobs.{checked.job}")
        code = job.main(checked, output, started)
    except KeyboardInterrupt:
        _fail(EXIT_INTERRUPTED, f"interrupted; output_dir={output} goes on where this stopped")
        raise
    except UserError as error:
        code = _fail(EXIT_BAD_INPUT, str(error))
    except OmegaConfBaseException as error:
        code = _fail(EXIT_BAD_INPUT, config.one_line(error))
    except Exception as error:
        log.exception("the job failed")
        last = (str(error).strip().splitlines() or [""])[-1]
        traceback_at = output / "run.log"
        code = _fail(
            EXIT_INTERNAL,
            f"internal error: {type(error).__name__}: {last}; the traceback is in {traceback_at}",
        )
    _exit_codes.append(code)


def launch(hydra_main: Callable[[], None]) -> int:
    """Run Hydra's main; a command line that it refuses becomes one line on stderr.

    Returns:
        The process's exit code.
    """
    sys.argv[1:] = [_quote_braces(argument) for argument in sys.argv[1:]]
    # Hydra would print its errors itself, over several lines, and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(EXIT_BAD_INPUT, config.one_line(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return max(_exit_codes, default=0)


def _quote_braces(argument: str) -> str:
    """Quote a value such as models/CenterFace_bs{batch}.om: Hydra takes bare braces for a dict."""
    key, equals, value = argument.partition("=")
    if equals and "{batch}" in value and not value.startswith(("'", '"')):
        return f"{key}='{value}'"
    return argument


def _fail(code: int, message: str) -> int:
    print(f"cfdist: {message}", file=sys.stderr)
    return code

"""From the command line to a job and an exit code."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cfdist import __version__, config
from cfdist.command import interruptions
from cfdist.command.arguments import (
    Question,
    asked,
    asks_for_multirun,
    prepare_arguments,
    settings_of,
    take_config_folder,
)
from cfdist.command.completion import completion_script
from cfdist.command.objective import objective_of
from cfdist.command.resuming import going_on, run_to_go_on, sweep_to_go_on
from cfdist.command.run_folder import (
    TO_RUN,
    claim,
    finished_results,
    is_begun,
    read_results,
    refuse_package_folder,
)
from cfdist.command.uploading import deliver, deliver_unfinished, prepare
from cfdist.config.installation import CONFIG_FOLDER, choice_file, load_job
from cfdist.config.messages import HELP_WIDTH
from cfdist.config.uses import WITHOUT_FOLDER
from cfdist.distributed.guard import guarded, note_how_to_go_on
from cfdist.errors import DiskFullError, ExitCode, StoppedError, UserError
from cfdist.files import DISK_IS_FULL, JOURNAL, LOG, RESULTS, redacted
from cfdist.machine import process_age
from cfdist.monitoring import stream, terminal
from cfdist.monitoring.terminal import say
from cfdist.storage import path_or_uri, shown, uri_of, working_folder

# Set by run.sh: when the command began, its installation left out.
STARTED_VARIABLE = "CFDIST_STARTED"

# Errors that are the disk's, whether they name a file or not.
_OF_THE_DISK = (*DISK_IS_FULL, errno.EROFS, errno.EIO, errno.EFBIG)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOutcome:
    """How a job of this command ended.

    Attributes:
        overrides: The settings of the job, `key=value` as Hydra writes them.
        folder: The job's folder; `None` if the settings were refused before it was known.
        exit_code: The process's exit code if this were its only job.
        reason: Why the job has no results, one line; `None` if it has results.
        is_dry: Whether it was only to show what it would do, and leaves no results.
    """

    overrides: tuple[str, ...]
    folder: Path | None
    exit_code: int
    reason: str | None = None
    is_dry: bool = False


# Hydra gives `run_job` and the sweep's callback no place for state, so they share these two.
outcomes: list[JobOutcome] = []  # one for each job of this command that has ended, in order
held = contextlib.ExitStack()  # closed at the command's end; it holds a sweep's folder


def main() -> int:
    """Run the command line `sys.argv`; a refused one becomes one line on stderr.

    Returns:
        The process's exit code.
    """
    # Hydra would print its errors itself, over several lines, and exit with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    config.register()
    run = hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name="config")
    try:
        sys.argv[1:] = take_config_folder(sys.argv[1:])
        question = asked(sys.argv[1:])
        is_multirun = any(map(asks_for_multirun, sys.argv[1:]))
        sys.argv[1:] = prepare_arguments(sys.argv[1:])
        if question:
            stream.turn_off()
            print(answer(question))
            return ExitCode.DONE
        sys.argv[1:] = sweep_to_go_on(sys.argv[1:], is_multirun)
        with held:
            _spare_composing()
            run(run_job)()
    except ValueError as error:
        # A sweeper for which a run has no figure ends the sweep.
        codes = [outcome.exit_code for outcome in outcomes]
        if not is_multirun or not any(codes):
            raise
        return fail(max(codes), f"the sweeper gave up: {' '.join(str(error).split())}")
    except (UserError, StoppedError, HydraException, OmegaConfBaseException, OSError) as error:
        return fail(*explain(error))
    return max((outcome.exit_code for outcome in outcomes), default=ExitCode.DONE)


def _spare_composing() -> None:
    """Let Hydra compose the settings once: it does so a first time only to read `hydra.mode`.

    Only an experiment, its own file or one that it inherits from, or the command line may set that.
    """
    settings = sys.argv[1:]
    chosen = [one.replace("'", "") for one in settings if "experiment" in one]
    if all(map(_tells_its_mode, chosen)) and not any("hydra" in one for one in settings):
        mode = RunMode.MULTIRUN if any(map(asks_for_multirun, chosen)) else None
        held.callback(setattr, Hydra, "get_mode", Hydra.get_mode)
        Hydra.get_mode = lambda *_, **__: mode  # type: ignore[method-assign]


def _tells_its_mode(setting: str) -> bool:
    """Whether a setting chooses an experiment whose file inherits from no other."""
    group, _, name = setting.partition("=")
    file = choice_file(group, name) if group == "experiment" else None
    defaults = OmegaConf.select(OmegaConf.load(file), "defaults") if file else None
    return file is not None and all(
        isinstance(one, DictConfig) and all(str(key).startswith("override ") for key in one)
        for one in defaults or ()
    )


def answer(question: Question) -> str:
    """What is printed instead of a run.

    Raises:
        UserError: no such job, or settings that a run would refuse.
    """
    if question.what == "version":
        return f"cfdist {__version__}"
    if question.what == "help":
        columns = shutil.get_terminal_size(fallback=(HELP_WIDTH, 0)).columns
        return config.help_text(question.about, columns)
    if question.what == "completion":
        return completion_script(question.about or "")
    settings = settings_of(sys.argv[1:])
    composed = config.compose_prepared(*settings)
    config.load(composed, config.typed_keys(settings))
    return OmegaConf.to_yaml(composed, resolve=True).rstrip()


def run_job(composed: DictConfig) -> float | None:
    """Check the composed configuration and run its job; Hydra calls it once a job.

    Only an interruption passes, so that in a multirun the failure of one job does not stop the
    others.

    Returns:
        The figure that `objective` names, for Hydra's sweepers; `None` without one.
    """
    started, number = _start_time(), _run_number()
    figure = None
    folder, output, is_dry = None, None, False
    try:
        typed = config.typed_keys(sys.argv[1:])
        composed = run_to_go_on(composed, typed)
        checked = config.load(composed, typed)
        _set_screen(checked)
        is_dry = checked.convert.dry_run or checked.job in WITHOUT_FOLDER
        path_or_uri(checked.output_dir, "output_dir")  # refuses a secret
        folder = working_folder(checked.output_dir)
        output = folder if number is None else folder / str(number)
        checked.output_dir = shown(output)
        stream.emit("start", job=checked.job, output_dir=checked.output_dir)
        guarded()
        note_how_to_go_on(lambda: going_on(folder))
        composed.output_dir = config.literal(checked.output_dir)
        config_yaml = OmegaConf.to_yaml(composed, resolve=True)
        code, reason, figure = _run(checked, config_yaml, output, started)
    except Exception as error:
        code, reason = explain(error, output)
        if code == ExitCode.INTERNAL and not isinstance(error, StoppedError):
            traceback.print_exc()
    # What is wrong with all runs of a sweep is said once.
    if reason is not None and reason not in {one.reason for one in outcomes}:
        # A run that was refused before it began has nothing to go on with.
        is_over = output is None or (code == ExitCode.BAD_INPUT and not is_begun(output))
        # With a sweep's run the rest of it goes on.
        fail(code, f"{reason}{going_on(None if is_over else output if number is None else folder)}")
    if output is not None:
        _emit_end(output, code, None if is_dry or reason else output / RESULTS)
    overrides = tuple(HydraConfig.get().overrides.task)
    outcomes.append(JobOutcome(overrides, output, code, reason, is_dry))
    return figure


def _run(
    checked: config.Config, config_yaml: str, output: Path, started: float
) -> tuple[int, str | None, float | None]:
    """The job's exit code, the reason if it broke down, and the figure that `objective` names."""
    if checked.job in WITHOUT_FOLDER:
        if (number := _run_number()) is not None:  # nothing else tells its runs apart
            settings = " ".join(HydraConfig.get().overrides.task)
            say(redacted(f"run {number}: {settings}"))
        return load_job(checked.job).main(checked, output, started), None, None
    figures = []

    def look() -> None:
        if checked.objective is not None:
            figures.append(objective_of(read_results(output)))

    goes_on = _run_number() is not None
    code, error = run_in_folder(checked, config_yaml, output, started, look, goes_on)
    if error is not None:
        return code, f"{_internal(error)}; the traceback is in {output / LOG}", None
    return code, None, figures[0] if figures else None


def run_in_folder(
    checked: config.Config,
    config_yaml: str,
    output: Path,
    started: float,
    look: Callable[[], None],
    goes_on: bool = False,
) -> tuple[int, Exception | None]:
    """Run a job in a folder of its own, unless it was done there when this command goes on.

    Args:
        checked: The run's configuration.
        config_yaml: The same as it is written.
        output: The folder.
        started: When the command began, seconds since the epoch.
        look: Is called while the results are there.
        goes_on: Whether the run may have been done before, as those of a sweep. It may if it was
            resumed, or if a folder for its URI is left here.

    Returns:
        The exit code, and the error if it is one of the program's own: its traceback is in the log.

    Raises:
        UserError: bad input.
        StoppedError: the run ended early.
        OSError: a file or the disk does not work.
    """
    goes_on = goes_on or "resume" in checked.typed() or bool(uri_of(output) and output.exists())
    if goes_on and (results := finished_results(output, config_yaml, checked.typed())):
        from cfdist.report.results import verdict

        say(f"{shown(output)}: done by an earlier command")
        shutil.rmtree(output / JOURNAL, ignore_errors=True)  # it may have been killed before this
        look()
        deliver(output)
        return verdict(results)[0], None
    refuse_package_folder(checked)
    if any(checked.log.model_dump().values()):
        from cfdist.trackers import check_trackers

        check_trackers(checked.log)
    if checked.cluster.joined is not None and "cluster.address" in checked.typed():
        from cfdist.distributed.joining import refuse_silent

        refuse_silent(checked.cluster.joined)
    prepare(output, TO_RUN)
    try:
        with claim(output, config_yaml):
            code, error = _run_job(checked, output, started)
            if error is None:
                look()
    except StoppedError:
        deliver_unfinished(output)
        raise
    (deliver if error is None else deliver_unfinished)(output)
    return code, error


def _run_job(checked: config.Config, output: Path, started: float) -> tuple[int, Exception | None]:
    """See `run_in_folder`; this process holds the folder."""
    try:
        with terminal.others_to(output / LOG):
            if terminal.is_guarded():
                _begin(checked)
            code = load_job(checked.job).main(checked, output, started)
            if any(checked.log.model_dump().values()):
                from cfdist.trackers import track

                track(checked.log, output)
            return code, None
    except (UserError, StoppedError) as error:
        if isinstance(error, StoppedError):
            _end_session(error)
        raise
    except Exception as error:
        log.exception("the job failed")
        if file_error := _file_error(error):
            raise file_error from None
        _end_session(error)
        return ExitCode.INTERNAL, error


def _begin(checked: config.Config) -> None:
    """Say what begins before half a second of imports, and do what is for a process of our own."""
    if not (outcomes or checked.convert.dry_run or terminal.is_live() or stream.is_on()):
        say(f"starting job={checked.job} ...")  # a live screen shows something since the start
    from cfdist.detections import arrow_without_pandas

    arrow_without_pandas()


def _set_screen(checked: config.Config) -> None:
    """Show as much of the run as the configuration says."""
    terminal.show(checked.quiet, checked.verbose)
    if checked.progress == "json":  # as a preset says it; what was typed is known since the start
        stream.turn_on()
    logger = logging.getLogger()
    if checked.verbose and not any(type(one) is logging.StreamHandler for one in logger.handlers):
        logger.addHandler(logging.StreamHandler())


def _emit_end(output: Path, code: int, results: Path | None) -> None:
    """Write the event of a run's end."""
    if not stream.is_on():
        return
    content: dict[str, Any] = {}
    with contextlib.suppress(UserError, OSError):
        content = read_results(output) if results else {}
    place = shown(results) if results and content else None
    stream.end_run(shown(output), int(code), place, content)


def _end_session(error: Exception) -> None:
    """End the session of a sweep, which may be broken; the next run gets a new one."""
    from cfdist.distributed import session

    with contextlib.suppress(Exception):
        session.close_shared_session(error)


def explain(error: BaseException, output: str | Path | None = None) -> tuple[ExitCode, str]:
    """The exit code and the one line for an error.

    Args:
        error: What was raised.
        output: The run's folder, which is named if an `OSError` names no file.

    Raises:
        KeyboardInterrupt: the error came of an interruption that was lost in what it hit.
    """
    if interruption := interruptions.pending():
        raise interruption from None
    match error:
        case DiskFullError():
            return ExitCode.DISK_FULL, str(error)
        case StoppedError():
            return error.exit_code, str(error)
        case UserError():
            return ExitCode.BAD_INPUT, str(error)
        case HydraException() | OmegaConfBaseException():
            return ExitCode.BAD_INPUT, config.one_line(error)
        case OSError():
            is_full = error.errno in DISK_IS_FULL
            code = ExitCode.DISK_FULL if is_full else ExitCode.BAD_INPUT
            return code, _refused_file(error, output)
    return ExitCode.INTERNAL, _internal(error)


def _refused_file(error: OSError, output: str | Path | None) -> str:
    """What a person is told of a file or folder that cannot be used."""
    first = (
        "make room"
        if error.errno in DISK_IS_FULL
        else "see that it is there and to its permissions"
    )
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    is_ours = name is None or (output is not None and Path(name).is_relative_to(output))
    other = "choose another output_dir" if is_ours else "name another"
    where = name or (f"output_dir={output}" if output else "output_dir")
    return f"{where}: {error.strerror or error}; {first}, or {other}"


def _file_error(error: BaseException | None) -> OSError | None:
    """The error about a file or the disk that is behind an error, also behind one of Ray's."""
    while error is not None:
        is_of_disk = isinstance(error, OSError) and (
            error.filename is not None or error.errno in _OF_THE_DISK
        )
        if is_of_disk and not isinstance(error, ConnectionError | TimeoutError):
            return cast(OSError, error)
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _internal(error: BaseException) -> str:
    last = (str(error).strip().splitlines() or [""])[-1]
    return f"internal error: {type(error).__name__}: {last}"


def _run_number() -> int | None:
    """The job's number in a multirun, from 0; `None` outside one."""
    current = HydraConfig.get()
    return current.job.num if current.mode == RunMode.MULTIRUN else None


def _start_time() -> float:
    """When the command began, seconds since the epoch; for further jobs of a multirun, now.

    run.sh says when it began: the process is older, because it has installed the environment.
    Without run.sh the command began with the process.
    """
    told = os.environ.pop(STARTED_VARIABLE, "")
    if outcomes:
        return time.time()
    with contextlib.suppress(ValueError):
        return float(told)
    return time.time() - process_age()


def fail(code: int, message: str) -> int:
    """Say what went wrong, on one line; returns the exit code.

    A tool's colours, or what a file's name would do to the screen, are shown as escapes.
    """
    message = re.sub(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", lambda one: repr(one[0])[1:-1], message)
    print(f"cfdist: {message}", file=sys.stderr)
    stream.emit("error", exit_code=int(code), message=message)
    return code

"""The command line's arguments as Hydra wants them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from omegaconf import OmegaConf

from cfdist import config
from cfdist.config.installation import CONFIG_FOLDER
from cfdist.errors import UserError

# Keys of Hydra's own configuration.
_OF_HYDRA = re.compile(r"hydra(?=[./@]|$)")

_MULTIRUN = ("-m", "--multirun")
_HELP = ("-h", "--help")
_VERSION = ("--version",)
_SHOW = ("-c", "--cfg")  # followed by "job"
_OPTIONS = (*_MULTIRUN, *_HELP, *_VERSION, *_SHOW)


@dataclass(frozen=True)
class Question:
    """What a person asks instead of a run.

    Attributes:
        what: "help", "version" or "settings" (the composed ones).
        job: The job that the help is about; `None`: all.
    """

    what: Literal["help", "version", "settings"]
    job: str | None = None


def asked(arguments: list[str]) -> Question | None:
    """What a command line asks for, if it does not ask for a run.

    Raises:
        UserError: beside the question stands what has no part in it.
    """
    for option in (*_HELP, *_VERSION):
        if option in arguments:
            is_help = option in _HELP
            jobs = [one for one in arguments if is_help and one.startswith("job=")][:1]
            if rest := [one for one in arguments if one not in (option, *jobs)]:
                with_job = " or with job=NAME" if is_help else ""
                raise UserError(f"{option}: stands alone{with_job}; leave {' '.join(rest)} out")
            job = jobs[0].removeprefix("job=") if jobs else None
            return Question("help" if is_help else "version", job)
    shows = any(argument.partition("=")[0] in _SHOW for argument in arguments)
    return Question("settings") if shows else None


def settings_of(arguments: list[str]) -> list[str]:
    """The settings of a command line, without its options.

    Raises:
        UserError: a sweep, whose runs have settings of their own, or not "--cfg job".
    """
    settings = [one for one in arguments if not one.startswith("-")]
    chosen = [one.partition("=")[2] for one in arguments if one.startswith(_SHOW) and "=" in one]
    if any(map(asks_for_multirun, arguments)):
        raise UserError("--cfg job: shows the settings of one run; leave the sweep out")
    if not chosen and "job" in settings:
        settings.remove("job")
        chosen = ["job"]
    if chosen != ["job"]:
        raise UserError("--cfg: shows the settings of a run as --cfg job, and nothing else")
    return settings


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Arguments as Hydra wants them: with quotes, which a person need not type.

    Raises:
        UserError: an option that does not exist, a key to delete, one of Hydra's own, or a key that
            is given two values.
    """
    is_multirun = any(map(asks_for_multirun, arguments))
    prepared = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        problem = None
        name = key.lstrip("+~")
        if key.startswith("-") and (key not in _OPTIONS or (equals and key not in _SHOW)):
            problem = "no such option; settings are key=value, "
        elif _OF_HYDRA.match(name) and name != "hydra.mode":
            problem = "cfdist sets this itself; output_dir=... names the folder, -m makes a sweep, "
        elif "@" in key:
            problem = "no such key; "
        elif key.startswith("~"):
            problem = "no key can be taken away; "
        elif equals and not key:
            problem = "not of the form key=value; "
        if problem:
            raise UserError(f"{argument}: {problem}{config.SEE_HELP}")
        prepared.append(config.prepare_override(argument, is_multirun=is_multirun))
    config.refuse_twice(dict(zip(prepared, arguments, strict=True)))
    # Hydra's parser refuses settings that follow an option which itself follows a setting.
    return sorted(prepared, key=lambda argument: argument not in _MULTIRUN)


def asks_for_multirun(argument: str) -> bool:
    """Whether an argument is an option for it, or chooses an experiment that is a sweep."""
    group, _, name = argument.partition("=")
    experiment = CONFIG_FOLDER / group / f"{name}.yaml"
    return argument in (*_MULTIRUN, "hydra.mode=MULTIRUN") or (
        group == "experiment"
        and experiment.is_file()
        and OmegaConf.select(OmegaConf.load(experiment), "hydra.mode") == "MULTIRUN"
    )

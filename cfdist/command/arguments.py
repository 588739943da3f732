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
    """What a command line asks for, if it does not ask for a run."""
    options = {argument.partition("=")[0] for argument in arguments}
    jobs = [one.removeprefix("job=") for one in arguments if one.startswith("job=")]
    if not options.isdisjoint(_HELP):
        return Question("help", jobs[-1] if jobs else None)
    if not options.isdisjoint(_VERSION):
        return Question("version")
    return None if options.isdisjoint(_SHOW) else Question("settings")


def settings_of(arguments: list[str]) -> list[str]:
    """The settings of a command line, without its options.

    Raises:
        UserError: a sweep, whose runs have settings of their own, or not "--cfg job".
    """
    settings = [one for one in arguments if not one.startswith("-")]
    chosen = [one.partition("=")[2] for one in arguments if one.startswith(_SHOW) and "=" in one]
    if any(map(_asks_for_multirun, arguments)):
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
        UserError: an option that does not exist, a key to delete, or one of Hydra's own.
    """
    is_multirun = any(map(_asks_for_multirun, arguments))
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
    # Hydra's parser refuses settings that follow an option which itself follows a setting.
    return sorted(prepared, key=lambda argument: argument not in _MULTIRUN)


def _asks_for_multirun(argument: str) -> bool:
    """Whether an argument is an option for it, or chooses an experiment that is a sweep."""
    group, _, name = argument.partition("=")
    experiment = CONFIG_FOLDER / group / f"{name}.yaml"
    return argument in (*_MULTIRUN, "hydra.mode=MULTIRUN") or (
        group == "experiment"
        and experiment.is_file()
        and OmegaConf.select(OmegaConf.load(experiment), "hydra.mode") == "MULTIRUN"
    )

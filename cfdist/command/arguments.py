"""The command line's arguments as Hydra wants them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from omegaconf import OmegaConf

from cfdist import config
from cfdist.config.installation import choice_file, config_folders
from cfdist.config.messages import setting_meant
from cfdist.config.overrides import quoted
from cfdist.errors import UserError
from cfdist.files import expanded

# Keys of Hydra's own configuration.
_OF_HYDRA = re.compile(r"hydra(?=[./@]|$)")
# Those that a person may set: Hydra's plugins for Optuna and others bring sweepers.
_OF_SWEEPER = re.compile(r"hydra\.mode$|hydra[./]sweeper(?=[./]|$)")

_MULTIRUN = ("-m", "--multirun")
_SELF = "_self_"  # where an experiment's own settings stand among those that it inherits
_HELP = ("-h", "--help")
_VERSION = ("--version",)
_SHOW = ("-c", "--cfg")  # followed by "job"
_FOLDER = ("-cd", "--config-dir")  # followed by a folder
_COMPLETION = ("-sc", "--shell-completion")  # followed by "install=<shell>"
# Hydra's own that would end a command with Hydra's words, or change what it reads.
_NOT_TAKEN = (
    *("-i", "--info", "-p", "--package", "-r", "--run", "--resolve", "--hydra-help"),
    *("-cp", "--config-path", "-cn", "--config-name", "--experimental-rerun"),
)
OPTIONS = (*_MULTIRUN, *_HELP, *_VERSION, *_SHOW, *_FOLDER, *_COMPLETION)


@dataclass(frozen=True)
class Question:
    """What a person asks instead of a run.

    Attributes:
        what: "help", "version", "settings" (the composed ones) or "completion".
        about: The job that the help is about (`None`: all), or the shell of the completion.
    """

    what: Literal["help", "version", "settings", "completion"]
    about: str | None = None


def take_config_folder(arguments: list[str]) -> list[str]:
    """The arguments without --config-dir; the folder that it names has groups of its own.

    Raises:
        UserError: no folder is named, or there is none.
    """
    rest, folder = _without_option(arguments, _FOLDER)
    if folder is not None:
        path = expanded(folder).absolute()
        if not folder or not path.is_dir():
            raise UserError(
                f"--config-dir={folder}: no such folder; name one that holds groups as conf/ does, "
                "such as backend/<name>.yaml"
            )
        if not any(path.glob("*/**/*.yaml")):
            raise UserError(
                f"--config-dir={folder}: holds no group that can be read, such as "
                "backend/<name>.yaml; leave it out, or name another folder"
            )
        config_folders[1:] = [path]
    return rest


def _without_option(arguments: list[str], names: tuple[str, ...]) -> tuple[list[str], str | None]:
    """The arguments without an option, and the option's value, after it or after a "="."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            values = [value] if equals else arguments[place + 1 : place + 2]
            rest = arguments[:place] + arguments[place + 1 + (not equals) :]
            return rest, (values or [""])[0]
    return arguments, None


def asked(arguments: list[str]) -> Question | None:
    """What a command line asks for, if it does not ask for a run.

    Raises:
        UserError: beside the question stands what has no part in it.
    """
    rest, shell = _without_option(arguments, _COMPLETION)
    if shell is not None:
        if rest:
            raise UserError(f"{_COMPLETION[1]}: stands alone; leave {' '.join(rest)} out")
        return Question("completion", shell.removeprefix("install="))
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
        if key.startswith("-") and (key not in OPTIONS or (equals and key not in _SHOW)):
            hint = setting_meant(key, OPTIONS) or f", {config.SEE_HELP}"
            if key in _NOT_TAKEN:
                hint = "; --cfg job shows a run's, --config-dir=DIR adds groups of your own"
            raise UserError(f"{argument}: no such option; settings are key=value{hint}")
        if _OF_HYDRA.match(name) and not _OF_SWEEPER.match(name):
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
    for folder in config_folders[1:]:  # what Hydra calls the search path
        prepared.append(f"hydra.searchpath=[{quoted(f'file://{folder}')}]")
        arguments = [*arguments, f"--config-dir={folder}"]
    config.refuse_twice(dict(zip(prepared, arguments, strict=True)))
    # Hydra's parser refuses settings that follow an option which itself follows a setting.
    return sorted(prepared, key=lambda argument: argument not in _MULTIRUN)


def asks_for_multirun(argument: str) -> bool:
    """Whether an argument is an option for it, or chooses an experiment that is a sweep."""
    group, _, name = argument.partition("=")
    return argument in (*_MULTIRUN, "hydra.mode=MULTIRUN") or (
        group == "experiment" and _mode_of(name) == "MULTIRUN"
    )


def _mode_of(experiment: str, heirs: tuple[str, ...] = ()) -> object:
    """The `hydra.mode` that an experiment sets, or one that it inherits from; `None`: none does.

    Args:
        experiment: Its name.
        heirs: Those that inherit from it.
    """
    file = choice_file("experiment", experiment)
    if file is None or experiment in heirs:  # Hydra refuses both
        return None
    content = OmegaConf.load(file)
    bases = [one for one in OmegaConf.select(content, "defaults") or () if isinstance(one, str)]
    mode = None
    for base in bases if _SELF in bases else [*bases, _SELF]:
        its = (
            OmegaConf.select(content, "hydra.mode")
            if base == _SELF
            else _mode_of(base.removeprefix("/experiment/"), (*heirs, experiment))
        )
        mode = its or mode
    return mode

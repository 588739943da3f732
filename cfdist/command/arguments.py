"""The command line's arguments as Hydra wants them."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

from cfdist import config
from cfdist.config.installation import CONFIG_FOLDER
from cfdist.errors import UserError

# Choices of a group, of a sweep or a list as well.
_CHOICES = re.compile(r"(choice\(|\[|)([\w.+-]+(?:,[\w.+-]+)*)(\)|\]|)")

# No path, or a path that the person has quoted.
_NEEDS_NO_QUOTES = re.compile(r"(?i:null)|'.*'|\".*\"|")

_HYDRA_OPTIONS = frozenset(
    """-h --help --hydra-help --version -c --cfg --resolve -p --package -r --run -m --multirun
    -sc --shell-completion -cp --config-path -cn --config-name -cd --config-dir
    --experimental-rerun -i --info""".split()  # noqa: SIM905 (reads better than a list)
)

_MULTIRUN = ("-m", "--multirun")


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Arguments as Hydra wants them: with quotes, which a person need not type.

    Raises:
        UserError: an option that does not exist, or a key to delete.
    """
    paths, options = config.path_keys(), config.option_keys()
    is_multirun = any(map(_asks_for_multirun, arguments))
    prepared = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        problem = None
        if key.startswith("-") and key not in _HYDRA_OPTIONS:
            problem = "no such option; settings are key=value, "
        elif key.startswith("~"):
            problem = "no key can be taken away; "
        elif equals and not key:
            problem = "not of the form key=value; "
        if problem:
            raise UserError(f"{argument}: {problem}{config.SEE_HELP}")
        is_sweep = is_multirun and "," in value
        if key in paths and not is_sweep and not _NEEDS_NO_QUOTES.fullmatch(value):
            argument = f"{key}={_quoted(value)}"
        if key in options:
            argument = f"{key}={_quoted_options(value)}"
        prepared.append(_with_named_choices(argument))
    # Hydra's parser refuses settings that follow an option which itself follows a setting.
    return sorted(prepared, key=lambda argument: argument not in _MULTIRUN)


def _quoted(value: str) -> str:
    """In Hydra's quotes; there a backslash is itself, unless a quote follows."""
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value).replace("'", "\\'")
    return f"'{escaped}'"


def _quoted_options(value: str) -> str:
    """Lists of a tool's options, [--a=b,--c=d,e], with each option in quotes.

    An option begins with a hyphen, so that a value may hold commas. Lists that the person has
    quoted stay as they are.
    """
    if any(quote in value for quote in "'\""):
        return value
    if not re.fullmatch(r"\[[^][]*\](,\[[^][]*\])*", value):
        return _quoted(value)

    def quote_list(found: re.Match[str]) -> str:
        options = [part.strip() for part in re.split(r",(?=\s*-)", found[1])]
        return f"[{','.join(map(_quoted, filter(None, options)))}]"

    return re.sub(r"\[([^][]*)\]", quote_list, value)


def _with_named_choices(argument: str) -> str:
    """A setting of a group with its choices in quotes; other settings unchanged.

    Hydra reads a choice such as 1 or null as a value that is no name, and fails on it. The setting
    "experiment=null", no experiment, becomes the empty list of experiments.
    """
    key, _, value = argument.partition("=")
    group = key.lstrip("+").partition("@")[0]
    choices = _CHOICES.fullmatch(value)
    if not choices or not config.group_choices(group):
        return argument
    names = [f"'{name}'" for name in choices[2].split(",")]
    if group == "experiment":
        names = ["[]" if name.lower() == "'null'" else name for name in names]
    return f"{key}={choices[1]}{','.join(names)}{choices[3]}"


def _asks_for_multirun(argument: str) -> bool:
    """Whether an argument is an option for it, or chooses an experiment that is a sweep."""
    group, _, name = argument.partition("=")
    experiment = CONFIG_FOLDER / group / f"{name}.yaml"
    return argument in (*_MULTIRUN, "hydra.mode=MULTIRUN") or (
        group == "experiment"
        and experiment.is_file()
        and OmegaConf.select(OmegaConf.load(experiment), "hydra.mode") == "MULTIRUN"
    )

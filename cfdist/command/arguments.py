"""The command line's arguments as Hydra wants them."""

from __future__ import annotations

import json
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cfdist import config
from cfdist.config.installation import CONFIG_FOLDER
from cfdist.errors import UserError

# No path, or one that the person has quoted.
_NEEDS_NO_QUOTES = re.compile(r"(?i:null)|'.*'|\".*\"|")

_HYDRA_OPTIONS = frozenset(
    """-h --help --hydra-help --version -c --cfg --resolve -p --package -r --run -m --multirun
    -sc --shell-completion -cp --config-path -cn --config-name -cd --config-dir
    --experimental-rerun -i --info""".split()  # noqa: SIM905 (reads better than a list)
)

_MULTIRUN = ("-m", "--multirun")


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Arguments as Hydra wants them: paths quoted, so that a person need not; no null groups.

    Raises:
        UserError: an option that does not exist, a key to delete, or a group's choice that is no
            name.
    """
    paths = config.path_keys()
    is_multirun = _asks_for_multirun(arguments)
    prepared = []
    for argument in arguments:
        if argument.startswith("-") and argument.partition("=")[0] not in _HYDRA_OPTIONS:
            raise UserError(
                f"{argument}: no such option; settings are key=value, {config.SEE_HELP}"
            )
        if argument.startswith("~"):
            raise UserError(f"{argument}: no key can be taken away; {config.SEE_HELP}")
        key, equals, value = argument.partition("=")
        if equals and not key:
            raise UserError(f"{argument}: not of the form key=value; {config.SEE_HELP}")
        is_sweep = is_multirun and "," in value
        if key in paths and not is_sweep and not _NEEDS_NO_QUOTES.fullmatch(value):
            argument = f"{key}={_quoted(value)}"
        prepared.append(_with_named_choices(argument))
    # Behind a setting, Hydra's parser would take an option's settings for something unknown.
    return sorted(prepared, key=lambda argument: argument not in _MULTIRUN)


def _quoted(value: str) -> str:
    """In Hydra's quotes; there a backslash is itself, unless a quote follows."""
    escaped = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value).replace("'", "\\'")
    return f"'{escaped}'"


def _with_named_choices(argument: str) -> str:
    """A setting of a group as Hydra takes it; other settings as they are.

    "experiment=null", no experiment, becomes the empty list of experiments.

    Raises:
        UserError: a choice is no name; Hydra itself would fail on it.
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
        if not isinstance(choice, str | dict):
            raise UserError(config.no_such_choice(group, json.dumps(choice), choices))
    return argument


def _choices_of(argument: str) -> list[Any]:
    """The values of a setting, those in sweeps and lists as well; none if Hydra cannot read it."""
    try:
        override = OverridesParser.create().parse_override(argument)
        is_sweep = override.is_sweep_override()
        values = list(override.sweep_iterator()) if is_sweep else [override.value()]
    except HydraException:
        return []
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _asks_for_multirun(arguments: list[str]) -> bool:
    """Whether an option asks for it, or an experiment that is a sweep."""
    for argument in arguments:
        if argument in (*_MULTIRUN, "hydra.mode=MULTIRUN"):
            return True
        group, _, name = argument.partition("=")
        experiment = CONFIG_FOLDER / group / f"{name}.yaml"
        if (
            group == "experiment"
            and experiment.is_file()
            and OmegaConf.select(OmegaConf.load(experiment), "hydra.mode") == "MULTIRUN"
        ):
            return True
    return False

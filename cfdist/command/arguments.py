"""The command line's arguments as Hydra wants them."""

from __future__ import annotations

from omegaconf import OmegaConf

from cfdist import config
from cfdist.config.installation import CONFIG_FOLDER
from cfdist.errors import UserError

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
    is_multirun = any(map(_asks_for_multirun, arguments))
    prepared = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        problem = None
        if key.startswith("-") and key not in _HYDRA_OPTIONS:
            problem = "no such option; settings are key=value, "
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

"""From `conf/` and the command line to a checked configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from cfdist.config.installation import CONFIG_FOLDER
from cfdist.config.messages import allowed, help_text, refused_value
from cfdist.config.schema import OPTIONS, PATH, Config, all_fields
from cfdist.errors import UserError


def load(composed: DictConfig) -> Config:
    """The composed configuration, every value checked.

    Raises:
        UserError: a key is unknown, or a value is missing or not allowed.
    """
    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise UserError(f"{missing[0]}: no value given; add {missing[0]}=... to the command")
    values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(refused_value(error, values)) from None


def compose(*overrides: str) -> Config:
    """The configuration of a command line, for programs and tests."""
    register()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return load(hydra_compose("config", list(overrides)))


def register(*, with_help: bool = False) -> None:
    """Make the defaults and the resolvers known to Hydra, and the help page if it is wanted."""
    # With the process's number, two runs that start in the same second get their own folders.
    OmegaConf.register_new_resolver("process_id", os.getpid, replace=True)
    OmegaConf.register_new_resolver(
        "absolute", lambda path: str(Path(path).expanduser().absolute()), replace=True
    )
    defaults = OmegaConf.create()
    for key, field in all_fields().items():
        OmegaConf.update(defaults, key, "???" if field.is_required() else field.default)
    store = ConfigStore.instance()
    store.store(name="schema", node=defaults)
    page = help_text().replace("$", "$$") if with_help else ""
    node = {"app_name": "cfdist", "header": "", "footer": "", "template": page}
    store.store(group="hydra/help", name="cfdist", node=node)


def path_keys() -> set[str]:
    """The keys whose values are paths."""
    return {key for key, field in all_fields().items() if PATH in allowed(field)}


def option_keys() -> set[str]:
    """The keys whose values are lists of a tool's options."""
    return {key for key, field in all_fields().items() if OPTIONS in allowed(field)}

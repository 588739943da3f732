"""From `conf/` and the command line to a checked configuration."""

from __future__ import annotations

import functools
import os
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from pydantic import ValidationError

from cfdist.config.installation import CONFIG_FOLDER
from cfdist.config.messages import refused_value
from cfdist.config.overrides import prepare_override
from cfdist.config.schema import Config, all_fields
from cfdist.config.unused import flat, refuse_unused
from cfdist.errors import UserError
from cfdist.storage import working_folder

# Jobs whose pictures, or models, are of model.width x model.height.
_LETTERBOXING = (
    *("benchmark", "export", "convert", "quantize"),
    *("preprocess", "infer", "postprocess"),
)


def load(composed: DictConfig, typed: frozenset[str] = frozenset()) -> Config:
    """The composed configuration, every value checked.

    Args:
        composed: The values of every key.
        typed: The keys that the person has typed, see `typed_keys`; each has to have an effect.

    Raises:
        UserError: a key is unknown, a value is missing or not allowed, or the run does not read a
            typed key, or not at such a value.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    if missing := sorted(key for key, value in flat(values).items() if value == MISSING):
        raise UserError(f"{missing[0]}: no value given; add {missing[0]}=... to the command")
    config = validated(values)
    config.mark_typed(typed)
    refuse_unused(config)
    if config.preprocess.size == "own" and config.job in _LETTERBOXING:
        raise UserError(
            f"preprocess.size=own: job={config.job} takes letterboxed pictures; leave the preset "
            "that sets it out, or choose job=evaluate, compare or detect"
        )
    return config


def validated(values: dict[str, Any]) -> Config:
    """The configuration of plain values, section by section, each of them checked.

    Raises:
        UserError: a key is unknown, or a value is not allowed.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(refused_value(error, values)) from None


def compose(*overrides: str) -> Config:
    """The configuration of settings, for programs and tests; some may be without effect."""
    return load(compose_values(*overrides))


def compose_values(*overrides: str) -> DictConfig:
    """The values of every key as Hydra composes them, not checked."""
    return compose_prepared(*(prepare_override(one, is_multirun=False) for one in overrides))


def compose_prepared(*overrides: str) -> DictConfig:
    """The same of settings whose texts are in quotes already, which must not be quoted twice."""
    register()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return hydra_compose("config", [*overrides])


@functools.cache
def register() -> None:
    """Make the defaults and the resolvers known to Hydra."""
    # With the process's number, two runs that start in the same second get their own folders.
    OmegaConf.register_new_resolver("process_id", os.getpid, replace=True)
    OmegaConf.register_new_resolver(
        "absolute", lambda path: str(working_folder(path)), replace=True
    )
    defaults: dict[str, Any] = {}
    for key, field in all_fields().items():
        *sections, name = key.split(".")
        inner = functools.reduce(lambda of, section: of.setdefault(section, {}), sections, defaults)
        inner[name] = MISSING if field.is_required() else field.default
    ConfigStore.instance().store(name="schema", node=OmegaConf.create(defaults))

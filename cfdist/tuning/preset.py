"""The preset that job=tune leaves: a file of the group `experiment`, for --config-dir."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from cfdist.config import Config, flat, literal
from cfdist.config.installation import group_choices
from cfdist.files import write_text
from cfdist.storage import is_uri
from cfdist.tuning.candidates import Candidate

FOLDER = "conf"  # in the run's folder; --config-dir names it
NAME = "tuned"

# What a person may have typed and a later command has to have as well, to be the same run.
_KEPT = ("model.", "backend.", "pipeline.", "devices")
_PATHS = ("model.path", "model.checkpoint", "model.weights.path")


def preset_settings(config: Config, best: Candidate) -> dict[str, Any]:
    """Key -> value of the preset: what was tuned, and what was typed of model and devices."""
    values = flat(best.configured(config).model_dump())
    typed = {key: values[key] for key in config.typed() if key in values and key.startswith(_KEPT)}
    settings = typed | best.settings()
    if best.variant.file:
        settings.pop("model.sha256", None)  # of the other file
    for key in _PATHS:
        if isinstance(path := settings.get(key), str) and not is_uri(path):
            settings[key] = os.path.abspath(os.path.expanduser(path))
    return settings


def write_preset(config: Config, best: Candidate, output: Path, said: str) -> Path:
    """Write the preset; returns its file.

    Args:
        config: The run's.
        best: What it sets.
        output: The run's folder.
        said: What was measured, a line for the file's head.
    """
    choices = {"model": config.model.name, "backend": best.variant.backend}
    chosen = {group: one for group, one in choices.items() if one in group_choices(group)}
    nested: dict[str, Any] = {
        "defaults": [{f"override /{group}": one} for group, one in chosen.items()]
    }
    settings = preset_settings(config, best)
    if "backend" not in chosen:
        settings = {"backend.name": choices["backend"], **settings}
    for key, value in sorted(settings.items()):
        place = nested
        *sections, name = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = literal(value) if isinstance(value, str) else value
    path = output / FOLDER / "experiment" / f"{NAME}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# @package _global_\n# {said}\n"
    write_text(path, head + yaml.safe_dump(nested, sort_keys=False, allow_unicode=True))
    return path

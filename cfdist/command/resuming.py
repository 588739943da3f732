"""Going on with a run that ended early: what a person types for it, and what is then run."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cfdist import config
from cfdist.command.run_folder import HYDRA_RECORD, OF_THE_SCREEN, is_held, is_run_folder
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.files import CONFIG, RESULTS, SWEEP_CSV, redacted
from cfdist.storage import (
    is_recorded,
    path_or_uri,
    recorded,
    remote_folder,
    shown,
    spool_of,
    uri_of,
    working_folder,
)

# Set by run.sh: how it was called.
COMMAND_VARIABLE = "CFDIST_COMMAND"

AUTO = "auto"

# Jobs that go on in their folder.
_GOING_ON = ("evaluate", "tune")

# What a run that goes on may have of its own.
_OF_THE_PLACE = ("resume", "output_dir")

# What it may have otherwise than it began with.
_OF_ITS_OWN = (*OF_THE_SCREEN, "tune.minutes", "tune.tolerance")

# Hydra's key for the folder that --config-dir names.
SEARCH_PATH = "hydra.searchpath"


def going_on(folder: Path | None) -> str:
    """How to go on with what a folder holds, to be added to a line; empty if there is no need."""
    if folder is None:
        return ""
    if is_unfinished(folder):
        return f"; go on with: {command_to_go_on(folder)}"
    job = _job_of(folder)
    is_anew = job is not None and job not in _GOING_ON and not (folder / RESULTS).exists()
    return f"; job={job} begins anew when it is called again" if is_anew else ""


def command_to_go_on(folder: Path) -> str:
    """The command that goes on with a folder's run or sweep, quoted for the shell."""
    folder = folder.absolute()
    name = str(folder)
    if spool := spool_of(folder):  # of a sweep's run it is the sweep's
        name = shown(spool)
    elif folder.is_relative_to(Path.cwd()):
        near = str(folder.relative_to(Path.cwd()))
        # Another name could mean something else: a home folder, or one of two words.
        is_plain = re.fullmatch(r"\w[\w./-]*", near, re.ASCII) and near not in (AUTO, "null")
        name = near if is_plain else name
    return shlex.join([*program(), f"resume={name}"])


def program() -> list[str]:
    """The words by which this program was called, up to its first argument."""
    if script := os.environ.get(COMMAND_VARIABLE):
        return [script]
    if sys.argv[0] in sys.orig_argv and sys.argv[0].endswith(".py"):
        return sys.orig_argv[: sys.orig_argv.index(sys.argv[0]) + 1]
    return [sys.argv[0]]


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds an evaluation, a search, or a sweep, that has not come to its end.

    A spool folder has not, as long as it is there.
    """
    is_sent = spool_of(folder) is None
    if (folder / HYDRA_RECORD).is_file():
        return not (is_sent and (folder / SWEEP_CSV).exists())
    if not (folder / CONFIG).is_file() or (is_sent and (folder / RESULTS).exists()):
        return False
    try:
        return bool(_settings_of(folder))
    except UserError:
        return False


def sweep_to_go_on(arguments: list[str], is_multirun: bool) -> list[str]:
    """The command line of the sweep that `resume` names; another one unchanged.

    Args:
        arguments: As Hydra takes them.
        is_multirun: Whether they ask for a sweep themselves.

    Raises:
        UserError: `resume` names no sweep where one is typed, or one of other settings.
    """
    settings = {one.partition("=")[0]: one for one in arguments if not one.startswith("-")}
    resume, output_dir = (_value(settings.get(key, "")) for key in _OF_THE_PLACE)
    others = (*_OF_THE_PLACE, *OF_THE_SCREEN, "hydra.mode", SEARCH_PATH)
    typed = {redacted(one): one for key, one in settings.items() if key not in others}
    if resume is None or (resume == AUTO and not is_multirun):
        return arguments
    base = working_folder(output_dir) if output_dir else None
    folder = _newest_sweep(set(typed), base) if resume == AUTO else _folder_of(resume)
    begun = _sweep_settings(folder)
    if begun is None and not is_multirun:
        return arguments
    name = shown(folder)
    if begun is None:
        raise UserError(f"resume={name}: holds no sweep; leave -m out to go on with a run")
    if new := sorted(typed.keys() - begun):
        raise UserError(
            f"resume={name}: a sweep of other settings: {new[0]} is typed, it has "
            f"{' '.join(begun) or 'none'}; leave out what differs"
        )
    if base not in (None, folder) and resume != AUTO:
        raise UserError(f"resume={name}: goes on in its own folder; leave output_dir out")
    if spool_of(folder) is None or not (folder / SWEEP_CSV).exists():
        refuse_finished_sweep(folder, opens=True)
    place = config.prepare_override(f"output_dir={name}", is_multirun=False)
    now = [settings[key] for key in (*OF_THE_SCREEN, SEARCH_PATH) if key in settings]
    begun = [one for one in begun if one.partition("=")[0] not in settings or one in typed]
    # The record has the settings without their secrets, which have to be typed again.
    return ["--multirun", *(typed.get(one, one) for one in begun), place, *now]


def _folder_of(resume: str) -> Path:
    path_or_uri(resume, "resume")  # refuses a secret
    return working_folder(resume)


def refuse_finished_sweep(folder: Path, opens: bool = False) -> None:
    """Say of a sweep that has come to its end how it ended.

    Args:
        folder: The sweep's.
        opens: Whether one in which a run has no results counts as unfinished from now on.

    Raises:
        StoppedError: it has; the exit code is the highest of its runs.
        UserError: its table is damaged, or cannot be removed.
    """
    content = _recorded(folder, SWEEP_CSV)
    if content is None:
        return
    try:
        rows = [*csv.DictReader(io.StringIO(content.decode()))]
        highest = max(int(row["exit_code"]) for row in rows)
        code = {int(one): one for one in ExitCode}[highest]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"resume={shown(folder)}: its {SWEEP_CSV} is damaged") from None
    failed = any(row.get("reason") for row in rows)
    if failed and opens:
        _remove_table(folder)
        return
    again = f"; run again what failed: {command_to_go_on(folder)}" if failed else ""
    raise StoppedError(
        f"resume={shown(folder)}: this sweep is finished (exit code {code:d}, {code.meaning})"
        f"{again}",
        code,
    )


def _remove_table(folder: Path) -> None:
    """Remove a sweep's table, here or at its URI, so that the sweep is unfinished.

    Raises:
        UserError: it cannot be removed.
    """
    try:
        if uri := uri_of(folder):
            remote_folder(uri).remove(SWEEP_CSV)
        else:
            (folder / SWEEP_CSV).unlink()
    except OSError as error:
        raise UserError(
            f"resume={shown(folder)}: {SWEEP_CSV} cannot be removed ({error.strerror or error})"
        ) from None


def _newest_sweep(typed: set[str], base: Path | None) -> Path:
    """The newest unfinished sweep with just these settings.

    Raises:
        UserError: there is none.
    """
    for folder in _candidates(base):
        begun = {
            one
            for one in _sweep_settings(folder) or ()
            if one.partition("=")[0] not in OF_THE_SCREEN
        }
        if begun == typed and (folder / HYDRA_RECORD).exists():
            return folder
    raise UserError(
        f"resume={AUTO}: no unfinished sweep with these settings in {_where(base)}; leave resume "
        "out to begin one"
    )


def run_to_go_on(composed: DictConfig, typed: frozenset[str]) -> DictConfig:
    """The settings of the run that `resume` names; without it, those that were composed.

    Args:
        composed: The settings of this command line.
        typed: The keys that are in it.

    Raises:
        UserError: there is no such run, or what was typed differs from its settings.
    """
    if composed.get("resume") is None or composed.get("job") not in _GOING_ON:
        return composed
    now = config.flat(cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True)))
    secrets = {key: value for key, value in now.items() if _without_secrets(value) != value}
    now = {key: _without_secrets(value) for key, value in now.items()}
    output = working_folder(str(now["output_dir"]))
    own = {key for key in typed if key not in (*_OF_THE_PLACE, *_OF_ITS_OWN)}
    if now["resume"] == AUTO:
        folder = _newest(now, output if "output_dir" in typed else None, bool(own - {"job"}))
    else:
        folder = _folder_of(str(now["resume"]))
    then = _settings_of(folder)
    if "output_dir" in typed and output != folder:
        raise UserError(f"resume={shown(folder)}: goes on in its own folder; leave output_dir out")
    different = _different(config.flat(then), now, {config.key_of(key) for key in own})
    if different:
        raise UserError(
            f"resume={shown(folder)}: a run of other settings: {different}; leave out what differs"
        )
    settings = cast(DictConfig, OmegaConf.create(_escaped(then)))
    for key in now.keys() - config.flat(then).keys():  # what an earlier version did not have
        OmegaConf.update(settings, key, _escaped(now[key]))
    for key in typed.intersection(_OF_ITS_OWN):
        OmegaConf.update(settings, key, now[key])
    # The folder has the settings without their secrets, which have to be typed again.
    for key, value in (secrets | {"output_dir": shown(folder), "resume": None}).items():
        OmegaConf.update(settings, key, _escaped(value))
    return settings


def _newest(now: Mapping[str, Any], base: Path | None, has_settings: bool) -> Path:
    """The newest unfinished run, with just these settings if there are any.

    Raises:
        UserError: there is none.
    """
    closest = ""
    for folder in _candidates(base):
        if (folder / HYDRA_RECORD).exists():
            continue
        keys = now.keys() - {*_OF_THE_PLACE, *_OF_ITS_OWN}
        different = _different(config.flat(_settings_of(folder)), now, keys)
        if not different or not has_settings:
            return folder
        closest = closest or f"; {shown(folder)} differs: {different}"
    raise UserError(
        f"resume={AUTO}: no unfinished run{' with these settings' if has_settings else ''} in "
        f"{_where(base)}{closest}; leave resume out to begin one"
    )


def _candidates(base: Path | None) -> list[Path]:
    """Unfinished runs and sweeps that no process is at, the newest first."""
    folders = [base, *_inside(base)] if base else [*_inside(Path("outputs").absolute())]
    found = [one for one in folders if is_unfinished(one) and not is_held(one)]
    return sorted(found, key=_age)


def _age(folder: Path) -> tuple[int, str]:
    record = folder / CONFIG
    return -(record if record.exists() else folder / HYDRA_RECORD).stat().st_mtime_ns, str(folder)


def _inside(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.is_dir()] if folder.is_dir() else []


def _where(base: Path | None) -> str:
    return shown(base or Path("outputs").absolute())


def _settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a folder's run.

    Raises:
        UserError: the folder holds none that can be read.
    """
    name, content = shown(folder), _recorded(folder, CONFIG)
    try:
        settings = None if content is None else yaml.safe_load(content)
    except (UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"resume={name}: is no run's folder: its {CONFIG} is damaged") from None
    if not isinstance(settings, dict) or not (is_run_folder(folder) or spool_of(folder)):
        raise UserError(f"resume={name}: is no run's folder; name the folder of a run or sweep")
    if settings.get("job") not in _GOING_ON:
        raise UserError(
            f"resume={name}: job={settings.get('job')} cannot go on, only "
            f"{' and '.join(f'job={job}' for job in _GOING_ON)} can"
        )
    return settings


def _job_of(folder: Path) -> str | None:
    """The job of a folder's run; `None` if nothing that can be read tells."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        settings = yaml.safe_load((folder / CONFIG).read_bytes())
        return str(settings["job"]) if isinstance(settings, dict) and "job" in settings else None
    return None


def _sweep_settings(folder: Path) -> list[str] | None:
    """The settings that a folder's sweep was begun with, as Hydra takes them, but for its place.

    Raises:
        UserError: the sweep's record is damaged.
    """
    content = _recorded(folder, HYDRA_RECORD)
    if content is None:
        return None
    try:
        record = yaml.safe_load(content)
        settings = record["hydra"]["overrides"]["task"]
        return [one for one in settings if one.partition("=")[0] not in _OF_THE_PLACE]
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        raise UserError(f"resume={shown(folder)}: its {HYDRA_RECORD} is damaged") from None


def _recorded(folder: Path, name: str) -> bytes | None:
    """A file of a run's folder, here or at its URI; `None` if neither has it.

    Raises:
        UserError: it cannot be read, or the URI does not answer.
    """
    try:
        return recorded(folder / name) if is_recorded(folder / name) else None
    except OSError as error:
        raise UserError(
            f"resume={shown(folder)}: {name} cannot be read ({error.strerror or error})"
        ) from None


def _value(setting: str) -> str | None:
    """The text of a prepared setting; `None` for no text."""
    value = OverridesParser.create().parse_override(setting).value() if setting else None
    return None if value is None else str(value)


def _different(then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> str:
    """In what the settings differ, in words, among these keys; one that is new does not count."""
    words = [
        f"{key}={_written(then[key])} then, {_written(now.get(key))} now"
        for key in sorted(keys)
        if key in then and then[key] != now.get(key)
    ]
    return ", ".join(words)


def _without_secrets(value: Any) -> Any:
    return redacted(value) if isinstance(value, str) else value


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _escaped(value: Any) -> Any:
    """Settings as OmegaConf holds them: a text is no interpolation."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return config.literal(value) if isinstance(value, str) else value

"""Keys that the person has typed in vain: the run does not read them, or another one wins."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cfdist.config.schema import Config, all_fields, all_uses
from cfdist.config.uses import BACKENDS, Situation
from cfdist.errors import UserError

# What the choice of a group stands for: `backend=torch` for the backend's name.
_CHOICE_SETS = ("name", "protocol")


def typed_keys(arguments: Iterable[str]) -> frozenset[str]:
    """The keys, and the groups, that a command line sets; a section's keys are those in it.

    Args:
        arguments: As Hydra's parser takes them; options are left out.
    """
    keys = {key for argument in arguments for key, _ in _typed(argument)}
    parents = {key: key.rpartition(".")[0] for key in keys}  # one entry of a key's mapping sets it
    return frozenset(parents[key] if parents[key] in all_fields() else key for key in keys)


def refuse_twice(arguments: Mapping[str, str]) -> None:
    """Refuse a key that is given two values: Hydra would take the last.

    Args:
        arguments: See `typed_keys`, each with what the person has typed for it.

    Raises:
        UserError: it names the key and both settings.
    """
    seen: dict[str, tuple[Any, str]] = {}
    for argument, as_typed in arguments.items():
        with contextlib.suppress(HydraException):  # Hydra itself says what it cannot read
            for key, value in _typed(argument):
                first, where = seen.setdefault(key, (value, as_typed))
                if (type(first), first) != (type(value), value):
                    raise UserError(f"{key}: given twice, {where} and {as_typed}; leave one out")


def _typed(argument: str) -> Iterator[tuple[str, Any]]:
    """The keys that an argument sets, each with its value; none if it is an option."""
    if "=" in argument and not argument.startswith("-"):
        override = OverridesParser.create().parse_override(argument)
        yield from _inner_keys(override.key_or_group, override.value())


def refuse_unused(config: Config, backends: Iterable[str] | None = None) -> None:
    """Refuse what the person has typed and the run does not read.

    What only a file of `conf/` sets may stand there: it is for other runs.

    Args:
        config: The run's.
        backends: The backends that run its models; `None` if they are not known yet. A key that
            one of the possible ones reads is then let through.

    Raises:
        UserError: it names the key, and the job or setting with which it would count.
    """
    known = frozenset(backends or ())
    run = Situation(flat(config.model_dump()), known or frozenset(_possible_backends(config)))
    for key in sorted(config.typed()):
        if problem := _why_unread(key_of(key), config.job, run):
            is_resolved = known and config.job != "compare" and config.backend.name == "auto"
            if is_resolved and "backend=" in problem:
                problem += f" (backend=auto is {', '.join(sorted(known))} here)"
            raise UserError(f"{key}: {problem}")


def conditions(key: str, job: str) -> list[str] | None:
    """What has to be set for a job to read a key, in words; `None` if it never does."""
    uses = [use for use in all_uses()[key] if job in use.jobs]
    if not uses:
        return None
    return [] if any(not use.when for use in uses) else [one.words for one in uses[0].when]


def _why_unread(key: str, job: str, run: Situation) -> str | None:
    """Why a job does not read a key, and what would; `None` if it does."""
    unmet: list[list[str]] = [
        [one.words for one in use.when if not one.holds(run)]
        for use in all_uses().get(key, ())
        if job in use.jobs
    ]
    if key not in all_uses() or [] in unmet:
        return None
    if unmet:
        closest: Sequence[str] = min(unmet, key=len)
        return f"has no effect on this run; job={job} reads it only with {' and '.join(closest)}"
    jobs = sorted({name for use in all_uses()[key] for name in use.jobs})
    others = " or ".join(filter(None, (", ".join(jobs[:-1]), jobs[-1])))
    return f"job={job} does not read it; it is for job={others}"


def _possible_backends(config: Config) -> Sequence[str]:
    """The backends that may run the models, before any file or device has been looked at."""
    if config.job == "export":
        return ("torch",)
    if config.job == "compare":
        return BACKENDS
    if config.job == "infer" and config.infer.cli:
        return ("om",)
    name = config.backend.name
    if config.job == "tune" and name == "auto":
        return BACKENDS[:-1]  # without the simulated one
    by_itself = ("om", "openvino", "onnxruntime")
    return by_itself[config.job == "quantize" :] if name == "auto" else (name,)


def key_of(typed: str) -> str:
    """The key of the schema that a typed key or group sets."""
    choices = [f"{typed}.{name}" for name in _CHOICE_SETS]
    return next((key for key in (typed, *choices) if key in all_fields()), typed)


def _inner_keys(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and key not in all_fields():
        for name, inner in value.items():
            yield from _inner_keys(f"{key}.{name}", inner)
    else:
        yield key, value


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration's sections, "model.batch", with their values."""
    return dict(_flat_items(values))


def new_keys(
    then: Mapping[str, Any], now: Mapping[str, Any], typed: Collection[str]
) -> dict[str, Any]:
    """What these settings have, and those of an earlier version do not, at its default.

    Args:
        then: The settings of the earlier version.
        now: Those of this one.
        typed: The keys and groups that the person has typed. A preset may set any other, a group's
            file those of the group.

    Returns:
        Key -> its default: the schema's, or what `conf/` says.
    """
    chosen = {*typed, *(key_of(one) for one in typed)}
    return {
        key: value
        for key, value in now.items()
        if key not in then
        and key in all_fields()
        and (
            value == all_fields()[key].default
            or chosen.isdisjoint({key, "experiment", key.partition(".")[0]})
        )
    }


def _flat_items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and prefix + name not in all_fields():
            yield from _flat_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

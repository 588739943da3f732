"""What a person is told about settings: the page that `--help` prints, and refusals of one line."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cfdist.config.installation import COMMAND, group_choices
from cfdist.config.schema import all_fields, sections
from cfdist.errors import ExitCode

SEE_HELP = f"`{COMMAND} --help` explains every key"
_NOT_KEY_VALUE = f"not of the form key=value; {SEE_HELP}"
_SEVERAL = "several values; for a run of each add -m, for a list write [a,b]"
_LIST = "a list"

_INTRODUCTION = """\
cfdist: the WIDER FACE accuracy and the speed of CenterFace, on many devices at once

  {0} [key=value ...]
  {0} model.batch=16 devices=2
  {0} dataset=wider_val dataset.root=WIDER_val dataset.ground_truth=gt
  {0} job=score predictions=DIR dataset=wider_val dataset.ground_truth=gt
  {0} -m model.batch=1,4,8        a sweep: one run for each value
  {0} experiment=published_table  the sweep of the Ascend guide's table

A sweep leaves each run in <output_dir>/<number>, the summary in <output_dir>: sweep.csv,
sweep.md (with the published figures beside) and throughput.png.

Exit codes:
{1}
"""


def help_text() -> str:
    """Every key with what it means, what its value may be, and its default."""
    codes = "\n".join(f"  {code.value:<4} {code.meaning}" for code in ExitCode)
    lines = [_INTRODUCTION.format(COMMAND, codes)]
    for section, fields in sections():
        lines += [inspect.getdoc(section) or ""]
        for key, field in fields.items():
            meaning = " ".join((field.description or "").split())
            default = "" if field.is_required() else f"; default {shown(field.default)}"
            lines.append(f"  {key:<22} {meaning} [{allowed(field)}{default}]")
        lines.append("")
    return "\n".join(lines)


def refused_value(error: ValidationError, values: dict[str, Any]) -> str:
    """The first thing that is wrong with composed settings: the key, its value, what it may be."""
    problem = error.errors(include_url=False)[0]
    fields, key, value = all_fields(), "", cast(Any, values)
    for place in problem["loc"]:  # after a key follow indices of lists and choices of unions
        if key in fields or not isinstance(value, dict):
            break
        key, value = f"{key}.{place}".lstrip("."), value[str(place)]
    if key not in fields and problem["type"] == "extra_forbidden":
        return no_such_key(key)
    if key not in fields:
        inner = next(name for name in fields if name.startswith(f"{key}."))
        return f"{key}={shown(value)}: holds further keys; set these, such as {inner}=..."
    if value in ("", []) and problem["type"].endswith("too_short"):
        return f"{key}: must not be empty"
    hint = ""
    if problem["type"] == "string_type" and isinstance(value, bool | int | float):
        hint = ", a number here: put it into quotes where it is written"  # in a YAML file
    return f"{key}={shown(value)}: must be {allowed(fields[key])}{hint}"


def allowed(field: FieldInfo) -> str:
    """What a key's value may be, such as "a whole number from 1 to 1024 or null"."""
    *others, last = sorted(_options(field), key=lambda option: option.startswith(_LIST))
    return f"{', '.join(others)} or {last}" if others else last


def _options(field: FieldInfo) -> list[str]:
    """The possibilities that a value has, in words."""
    if field.title:
        return [field.title]
    kind, inner = field.annotation, get_args(field.annotation)
    if get_origin(kind) in (Union, UnionType):
        return [option for one in inner for option in _options(FieldInfo.from_annotation(one))]
    if get_origin(kind) is Literal:
        return [str(choice) for choice in inner]
    if get_origin(kind) is list:
        limits = [rule.max_length for rule in field.metadata if hasattr(rule, "max_length")]
        name = " of ".join([_LIST, *(f"{limit} values" for limit in limits)])
        return [f"{name} in brackets, each value {allowed(FieldInfo.from_annotation(inner[0]))}"]
    return {bool: ["true", "false"], NoneType: ["null"], str: ["text"]}[cast(Any, kind)]


def shown(value: Any) -> str:
    """A value as a person writes it on the command line: null, true, [a, b]."""
    if isinstance(value, str | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def one_line(error: HydraException | OmegaConfBaseException) -> str:
    """A Hydra or OmegaConf error as one line: what, where, and what to do."""
    message = " ".join(str(error).split())
    if found := re.search(r"Could not (?:find|load) '([^']+)'", message):
        group, _, choice = found[1].rpartition("/")
        if choices := group_choices(group):
            return f"{group}={choice}: no such choice; there are {', '.join(choices)}"
    if found := re.search(r"Could not override '([^']+)'", message):
        # In a mapping as value it is a key inside that does not exist.
        inner = re.search(rf"full_key: ({re.escape(found[1])}\.\S+)", str(error.__cause__))
        return no_such_key(inner[1] if inner else found[1])
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)' ", message):
        return f"{found[1]}: {_SEVERAL}"
    if found := re.match(r"Error parsing override '(.*?)'|LexerNoViable\w+: (.*?) \^", message):
        return f"{found[1] or found[2]}: {_NOT_KEY_VALUE}"
    if found := re.match(r"(.*) full_key: (\S+)", message):
        return f"{found[2]}: {found[1]}; {SEE_HELP}"
    return f"{message}; {SEE_HELP}"


def no_such_key(key: str) -> str:
    """What a person is told of a key that does not exist."""
    close = difflib.get_close_matches(key, all_fields(), n=1)
    hint = f"did you mean {close[0]}?" if close else SEE_HELP
    return f"{key}: no such key; {hint}"

"""Settings `key=value` as Hydra's grammar wants them: a text stays the text that was typed.

Hydra reads 2024_06_14 as a number and a bracket as a list, and knows no other alphabet. For a key
whose value is a text or a path, and for the choice of a group, the value is put into quotes before
Hydra sees it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from cfdist.config.installation import group_choices
from cfdist.config.messages import allowed, unreadable
from cfdist.config.schema import OPTIONS, PATH, all_fields
from cfdist.errors import UserError

# A text in quotes; a backslash before a quote belongs to it.
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""

# One of several texts with commas between.
_ELEMENT = re.compile(rf"\s*({_QUOTED}|[^,]*?)\s*(?:,|\Z)", re.DOTALL)

# One of the texts of a list, or of several lists.
_IN_LIST = re.compile(rf"({_QUOTED})|[^\[\],\s](?:[^\[\],]*[^\[\],\s])?", re.DOTALL)

# What only a sweep knows. Of `choice` the elements get quotes, the others are Hydra's.
_CHOICE = re.compile(r"choice\((.*)\)", re.DOTALL)
_GLOB = re.compile(r"glob\(([^,=\[\]]*)\)", re.DOTALL)
_SWEEP_FUNCTION = re.compile(r"(?:glob|interval|range|shuffle|sort|tag)\(.*\)", re.DOTALL)

# What needs no parser to be read.
_SIMPLE = re.compile(rf"[\w.+-]*|{_QUOTED}", re.ASCII)

_PARSER = OverridesParser.create()


@dataclass(frozen=True)
class _Text:
    """What a value may be where it is a text.

    Attributes:
        is_list: A list of texts in brackets.
        null: What the word null stands for, as Hydra writes it; `None`: it is a text like others.
        always_several: Commas are no part of it, outside a sweep as well.
        is_path: It is the path of a file or folder.
        is_options: A list of a tool's options.
    """

    is_list: bool = False
    null: str | None = None
    always_several: bool = False
    is_path: bool = False
    is_options: bool = False


def prepare_override(setting: str, *, is_multirun: bool) -> str:
    """A setting with its texts in quotes; settings of other kinds unchanged.

    Args:
        setting: `key=value` as typed. A text may be in quotes: null, and in a sweep a text with a
            comma, need them.
        is_multirun: Commas stand between the values of a sweep.

    Raises:
        UserError: there is nothing between two commas, no path that fits a `glob` pattern, or a
            value that is not written as any may be.
    """
    prepared = _prepared(setting, is_multirun=is_multirun)
    key, equals, value = prepared.partition("=")
    field = all_fields().get(key.lstrip("+"))
    if field and equals and not _SIMPLE.fullmatch(value):
        try:
            _PARSER.parse_override(prepared)
        except HydraException:
            raise UserError(unreadable(setting, field)) from None
    return prepared


def _prepared(setting: str, *, is_multirun: bool) -> str:
    """See `prepare_override`, which also looks whether Hydra can read it."""
    key, equals, value = setting.partition("=")
    text = _text_of(key.lstrip("+"))
    if text is None or not equals or not value:
        return setting
    if text.is_options:  # lists that the person has quoted stay as they are
        is_quoted = any(quote in value for quote in "'\"")
        return setting if is_quoted else f"{key}={_options(value)}"
    if text.is_list and value.startswith(("[", "{")):
        return f"{key}={_list(value)}" if value.startswith("[") else setting
    if text.is_list and not text.always_several:
        return setting
    is_sweep = is_multirun or text.always_several
    if is_sweep and text.is_path and (pattern := _GLOB.fullmatch(value)):
        return f"{key}={','.join(map(quoted, _matches(setting, pattern[1])))}"
    if is_sweep and _SWEEP_FUNCTION.fullmatch(value):
        return setting
    if is_sweep and (choice := _CHOICE.fullmatch(value)):
        return f"{key}=choice({_several(setting, choice[1], text)})"
    return f"{key}={_several(setting, value, text) if is_sweep else _element(value, text)}"


def literal(text: str) -> str:
    """A text as OmegaConf holds it: `${`, which begins an interpolation there, is escaped."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", text)


def quoted(text: str) -> str:
    """A text in the quotes of Hydra's grammar."""
    return QuotedString(literal(text), Quote.single).with_quotes()


def as_typed(key: str, text: str) -> str:
    """A text in quotes as a person would type them, of which `prepare_override` makes Hydra's."""
    kind = _text_of(key.lstrip("+"))
    if kind is None or kind.is_options:  # it leaves these as they are
        return quoted(text)
    return QuotedString(text, Quote.single).with_quotes()


def _text_of(key: str) -> _Text | None:
    """What a key's texts are; `None` if its value is something else."""
    group = key.partition("@")[0]
    if group_choices(group):
        null = "[]" if group == "experiment" else None
        return _Text(is_list=True, null=null, always_several=True)
    field = all_fields().get(key)
    kinds = _kinds(field.annotation) if field else set()
    if field is None or not kinds & {str, list}:
        return None
    null = "null" if type(None) in kinds else None
    return _Text(
        is_list=list in kinds,
        null=null,
        is_path=PATH in allowed(field),
        is_options=OPTIONS in allowed(field),
    )


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation unites, lists of texts as `list`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return set().union(*map(_kinds, inner))
    if origin is list:
        return {list} if str in _kinds(inner[0]) else set()
    return _kinds(inner[0]) if hasattr(annotation, "__metadata__") else {annotation}


def _matches(setting: str, pattern: str) -> list[str]:
    """The paths that fit a pattern of the shell's, sorted."""
    found = sorted(glob.glob(os.path.expanduser(_unquoted(pattern.strip())), recursive=True))
    if not found:
        raise UserError(f"{setting}: no file or folder fits the pattern")
    return found


def _several(setting: str, values: str, text: _Text) -> str:
    """Texts with commas between, each in quotes."""
    elements: list[str] = []
    end = 0
    while not elements or end < len(values) or values.endswith(","):
        found = _ELEMENT.match(values, end)
        if found is None or not found[1]:
            raise UserError(f"{setting}: a value is missing beside a comma")
        elements.append(_element(found[1], text))
        if found.end() == len(values) and not found[0].endswith(","):
            break
        end = found.end()
    return ",".join(elements)


def _list(value: str) -> str:
    """A list of texts in brackets, or several, with each text in quotes."""
    return _IN_LIST.sub(lambda found: _element(found[0], _Text()), value)


def _options(value: str) -> str:
    """Lists of a tool's options, [--a=b,--c=d,e], with each option in quotes.

    An option begins with a hyphen, so that a value may hold commas.
    """
    if not re.fullmatch(r"\[[^][]*\](,\[[^][]*\])*", value):
        return quoted(value)

    def quote_list(found: re.Match[str]) -> str:
        options = [part.strip() for part in re.split(r",(?=\s*-)", found[1])]
        return f"[{','.join(map(quoted, filter(None, options)))}]"

    return re.sub(r"\[([^][]*)\]", quote_list, value)


def _element(value: str, text: _Text) -> str:
    """One text in quotes; a text that was typed in quotes is what is inside."""
    if text.null is not None and (value.lower() if text.always_several else value) == "null":
        return text.null
    return quoted(_unquoted(value))


def _unquoted(value: str) -> str:
    """A text without the quotes that it was typed in."""
    if re.fullmatch(_QUOTED, value, re.DOTALL):
        with contextlib.suppress(HydraException):
            inner = _PARSER.parse_rule(value, "primitive")
            return inner.text if isinstance(inner, QuotedString) else value
    return value

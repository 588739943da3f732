"""What a person is told about settings: the page that `--help` prints, and refusals of one line."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cfdist.config.installation import COMMAND, group_choices, groups
from cfdist.config.schema import Different, all_fields, help_texts, sections
from cfdist.config.unused import conditions
from cfdist.config.uses import JOBS
from cfdist.errors import ExitCode, UserError, did_you_mean

SEE_HELP = f"`{COMMAND} --help` explains every key"
HELP_WIDTH = 100  # columns, at most
_KEY_WIDTH = 22
_NOT_KEY_VALUE = f"not of the form key=value; {SEE_HELP}"
_SEVERAL = "several values; for a run of each add -m, for a list write [a,b]"
_LIST = "a list"
# How like a key of its section a misspelt one has to be, 0 to 1; keys that are named as meant.
_LIKE_IN_SECTION, _MOST_MEANT = 0.65, 3
# How like an option's name a word has to be; a letter has to be one.
_LIKE_OPTION, _SHORT = 0.75, 1

# What other tools call a key, as they do in an option: --batch-size.
_ELSEWHERE = {
    word: keys
    for keys, words in {
        ("model.batch",): "bs b batch_size batchsize",
        ("devices",): "gpu gpus ngpu ngpus num_gpus gpu_id gpu_ids npu npus num_npus device_ids",
        ("devices", "backend", "backend.device"): "device cuda",
        ("pipeline.readers",): "workers num_workers threads num_threads",
        ("dataset.root", "input"): "data data_dir data_path images image_dir img_dir input_dir "
        "source folder",
        ("dataset.ground_truth",): "gt gt_dir labels annotations",
        ("model.path",): "weight weights ckpt onnx om model_path model_file engine",
        ("model.height", "model.width"): "size imgsz img_size image_size input_size input_shape",
        ("model.score", "detect.threshold"): "conf conf_thres conf_threshold score_threshold",
        ("model.nms",): "iou iou_thres iou_threshold nms_thres nms_threshold",
        ("output_dir",): "o out outdir out_dir save_dir results",
        ("backend.precision",): "fp16 half bf16 dtype",
        ("benchmark.loops",): "loop iterations iters",
        ("convert.soc_version",): "soc chip",
        ("cluster.address",): "master ray_address",
        ("job",): "mode task",
        ("verbose",): "v debug log_level",
        ("quiet",): "q silent",
    }.items()
    for word in words.split()
}
# The keys that name a file or folder, where a group's choice has been given one.
_FILE_OF_GROUP = {"model": "model.path", "dataset": "dataset.root"}

_INTRODUCTION = """\
cfdist: the WIDER FACE accuracy and the speed of CenterFace, on many devices at once

  {0} [key=value ...]
  {0} model.batch=16 devices=2
  {0} dataset=wider_val dataset.root=WIDER_val dataset.ground_truth=gt
  {0} job=score predictions=DIR dataset=wider_val dataset.ground_truth=gt
  {0} -m model.batch=1,4,8        a sweep: one run for each value
  {0} experiment=quick            a first look, within a minute
  {0} --cfg job model.batch=16    the settings of a run, checked, and no run

A sweep leaves each run in <output_dir>/<number>, the summary in <output_dir>: sweep.csv,
sweep.md (with the published figures beside) and throughput.png.

Exit codes:
{1}
"""

_OF_ONE_JOB = """\
cfdist: the keys that job={1} reads; `{0} --help` explains all

  {0} job={1} [key=value ...]
"""


def help_text(job: str | None = None, width: int = HELP_WIDTH) -> str:
    """Every key with what it means, what its value may be, and its default.

    Args:
        job: Only the keys that this job reads, and when it does; `None`: every key.
        width: Columns of a line; only a longer word takes more.

    Raises:
        UserError: no such job.
    """
    if job is not None and job not in JOBS:
        field = all_fields()["job"]
        raise UserError(f"job={job}: must be {allowed(field)}{did_you_mean(job, JOBS)}")
    codes = "\n".join(f"  {code.value:<4} {code.meaning}" for code in ExitCode)
    introduction = _INTRODUCTION.format(COMMAND, codes)
    if job is not None:
        introduction = _OF_ONE_JOB.format(COMMAND, job)
    lines = introduction.split("\n")
    if job is None:
        lines.append("Groups, of which a choice sets several keys: group=choice.")
        lines += [
            f"  {group:<{_KEY_WIDTH}} {', '.join(group_choices(group))}" for group in groups()
        ]
        lines.append("")
    for section, fields in sections():
        told = {key: field for key, field in fields.items() if _is_for(key, job)}
        if told:
            lines += (inspect.getdoc(section) or "").partition("\n\nAttributes:")[0].split("\n")
            texts = help_texts(section)
            for key, field in told.items():
                lines.append(_key_help(key, texts[key.rpartition(".")[2]], field, job))
            lines.append("")
    return "\n".join(part for line in lines for part in _wrapped(line, min(width, HELP_WIDTH)))


def _is_for(key: str, job: str | None) -> bool:
    return job is None or conditions(key, job) is not None


def _key_help(key: str, meaning: str, field: FieldInfo, job: str | None) -> str:
    default = "" if field.is_required() else f"; default {shown(field.default)}"
    needed = conditions(key, job) if job else None
    when = f" (only with {' and '.join(needed)})" if needed else ""
    return f"  {key:<{_KEY_WIDTH}} {meaning}{when} [{allowed(field)}{default}]"


def _wrapped(line: str, width: int) -> list[str]:
    """A line as lines of a width, those after the first one below the first one's text."""
    found = re.match(r"( *)(\S+ {2,}|\S+ (?=\S)|)", line)
    indent = len(found[0]) if found and line.startswith("  ") else 0
    if len(line) <= width:
        return [line]
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * (indent if indent <= width // 2 else 6),
        break_long_words=False,
        break_on_hyphens=False,
    )


def refused_value(error: ValidationError, values: dict[str, Any]) -> str:
    """The first thing that is wrong with composed settings: the key, its value, what it may be."""
    problem = error.errors(include_url=False)[0]
    fields, key, value = all_fields(), "", cast(Any, values)
    for place in problem["loc"]:  # after a key follow indices of lists and choices of unions
        if key in fields or not isinstance(value, dict):
            break
        key, value = f"{key}.{place}".lstrip("."), value.get(str(place))
    if key not in fields and problem["type"] == "extra_forbidden":
        return no_such_key(key)
    if problem["type"] == "missing":  # in a record that somebody has changed
        return f"{key}: no value given; add {key}=... to the command"
    if key not in fields:
        inner = next(name for name in fields if name.startswith(f"{key}."))
        hint = _meant(_ELSEWHERE.get(key, ())) or did_you_mean(
            key, [one for one in fields if "." not in one], 0.9
        )
        return f"{key}={shown(value)}: holds further keys; set these, such as {inner}=...{hint}"
    if value in ("", []) and problem["type"].endswith("too_short"):
        return f"{key}: must not be empty"
    hint = ""
    if problem["type"] == "string_type" and isinstance(value, bool | int | float):
        hint = ", a number here: put it into quotes where it is written"  # in a YAML file
    elif isinstance(problem["input"], str):  # of a list, the element
        hint = did_you_mean(problem["input"], choices(fields[key]))
    return f"{key}={shown(value)}: must be {allowed(fields[key])}{hint}"


def allowed(field: FieldInfo) -> str:
    """What a key's value may be, such as "a whole number from 1 to 1024 or null"."""
    *others, last = sorted(_options(field), key=lambda option: option.startswith(_LIST))
    return f"{', '.join(others)} or {last}" if others else last


def choices(field: FieldInfo) -> list[str]:
    """The words that a key's value, or an element of its list, may be."""
    kind, inner = field.annotation, get_args(field.annotation)
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(choice) for choice in inner]
    if get_origin(kind) in (Union, UnionType, list):
        return [word for one in inner for word in choices(FieldInfo.from_annotation(one))]
    return ["null"] if kind is NoneType else []


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
        words = [str(rule.max_length) for rule in field.metadata if hasattr(rule, "max_length")]
        words += ["different"] if Different in field.metadata else []
        name = f"{_LIST} of {' '.join(words)} values" if words else _LIST
        return [f"{name} in brackets, each value {allowed(FieldInfo.from_annotation(inner[0]))}"]
    return {bool: ["true", "false"], NoneType: ["null"], str: ["text"]}[cast(Any, kind)]


def shown(value: Any) -> str:
    """A value as a person writes it on the command line: null, true, [a, b]."""
    if isinstance(value, str | float):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def one_line(error: HydraException | OmegaConfBaseException) -> str:
    """A Hydra or OmegaConf error as one line: what, where, and what to do."""
    message = " ".join(str(error).split())
    if found := re.search(r"Could not (?:find|load) '([^']+)'", message):
        group, _, choice = found[1].removeprefix("hydra/").partition("/")
        if group == "sweeper":
            return (
                f"hydra/{group}={choice}: no such sweeper is installed; get it: "
                f"`pip install hydra-{choice}-sweeper`"
            )
        if names := group_choices(group):
            told = f"{group}={choice}: no such choice; there are {', '.join(names)}"
            key = _FILE_OF_GROUP.get(group) if re.search(r"[./\\~]", choice) else None
            file = f"; a file or folder is named by {key}=..." if key else ""
            return told + (file or did_you_mean(choice, names))
    if found := re.search(r"Could not override '([^']+)'", message):
        # In a mapping as value it is a key inside that does not exist.
        inner = re.search(rf"full_key: ({re.escape(found[1])}\.\S+)", str(error.__cause__))
        return no_such_key(inner[1] if inner else found[1])
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)' ", message):
        key = found[1].partition("=")[0].lstrip("+")
        if key not in [*all_fields(), *groups()]:
            return no_such_key(key)
        return f"{found[1]}: {_SEVERAL}"
    if found := re.match(r"Could not append to config\. An item is already at '(.+?)'", message):
        return f"+{found[1]}: is a key already; leave the + out"
    if isinstance(error, OverrideParseException):
        argument = error.override
        return f"{argument}: {_NOT_KEY_VALUE}{setting_meant(argument)}"
    found = re.match(r"Error merging override \+*(([^=]+)=.*)", message)
    if found and (field := all_fields().get(found[2])):
        return f"{found[1]}: must be {allowed(field)}"
    if found := re.match(r"(.*) full_key: (\S+)", message):
        return f"{found[2]}: {found[1]}; {SEE_HELP}"
    return f"{message}; {SEE_HELP}"


def no_such_key(key: str) -> str:
    """What a person is told of a key that does not exist: what is meant, what its section has."""
    mapping = key.rpartition(".")[0]
    if mapping in all_fields() and "mapping" in allowed(all_fields()[mapping]):
        return f"{key}: not in the mapping so far; add it as +{key}=..., or give all of {mapping}"
    known = [*all_fields(), *groups()]
    section, dot, end = key.casefold().rpartition(".")
    own = [one[len(section + dot) :] for one in known if one.startswith(section + dot)]
    inside = [*dict.fromkeys(one.partition(".")[0] for one in own)] if section else known
    near = difflib.get_close_matches(end, inside, 1, _LIKE_IN_SECTION)
    meant = [section + dot + one for one in near]
    hint = f"; {section} has {', '.join(inside)}" if inside and section and not meant else ""
    if not (section and meant):  # a key that is typed without its section, or in another one
        same_end = [one for one in known if one.rpartition(".")[2] == end and one not in meant]
        most = _MOST_MEANT if inside else 1  # a misspelt section is like one
        meant += difflib.get_close_matches(key, same_end, most, 0.0)[: most - len(meant)]
    elsewhere = () if section and near else _ELSEWHERE.get(end, ())
    hint += _meant([one for one in elsewhere if one.startswith(section + dot)] or meant)
    return f"{key}: no such key{hint or did_you_mean(key, known) or f'; {SEE_HELP}'}"


def _meant(keys: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(keys)}?" if keys else ""


def unreadable(setting: str, field: FieldInfo) -> str:
    """What a person is told of a value that Hydra's grammar has no place for, as "[1,2".

    The digits and signs of other keyboards, such as full-width ones, are told in ASCII.
    """
    value = setting.partition("=")[2]
    # "NFKC" makes the full-width ones ASCII's.
    plain = "".join(
        str(unicodedata.decimal(one, one)) for one in unicodedata.normalize("NFKC", value)
    )
    hint = f"; did you mean {plain}?" if plain.isascii() and plain != value else ""
    return f"{setting}: must be {allowed(field)}{hint}"


def setting_meant(argument: str, options: Sequence[str] = ()) -> str:
    """The end of a message about an argument that is no setting, such as score or --devices.

    Args:
        argument: What was typed.
        options: What else may be meant: "--help".
    """
    keys = {key: f"{key}=..." for key in all_fields()}
    words = {word: f"{keys[0]}=..." for word, keys in _ELSEWHERE.items()}
    words |= {key.rpartition(".")[2]: setting for key, setting in keys.items()} | keys
    for group in groups():
        words |= {choice: f"{group}={choice}" for choice in group_choices(group)}
    words |= {option.lstrip("-"): option for option in options if option.startswith("--")}
    words |= {job: f"job={job}" for job in JOBS}
    word = argument.lstrip("-").partition("=")[0].replace("-", "_")
    return did_you_mean(word, words, 1.0 if len(word) <= _SHORT else _LIKE_OPTION)

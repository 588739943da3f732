"""The page that `--help` prints."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools

from cfdist.config import schema
from cfdist.config.installation import COMMAND
from cfdist.config.messages import allowed, shown
from cfdist.config.schema import Config, Section, section_of
from cfdist.errors import ExitCode

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
    return "\n".join([_INTRODUCTION.format(COMMAND, codes), *_lines(Config, "")]) + "\n"


def _lines(section: type[Section], prefix: str) -> list[str]:
    """A line for each key of a section, then its inner sections."""
    lines, nested = [], []
    for name, field in section.model_fields.items():
        inner = section_of(field)
        if inner is not None:
            nested += ["", inspect.getdoc(inner) or "", *_lines(inner, f"{prefix}{name}.")]
            continue
        meaning = _meanings()[section.__name__, name]
        default = "" if field.is_required() else f"; default {shown(field.default)}"
        lines.append(f"  {prefix + name:<22} {meaning} [{allowed(field)}{default}]")
    return lines + nested


@functools.cache
def _meanings() -> dict[tuple[str, str], str]:
    """Class and key -> the text below the key. Pydantic would read it at every start."""
    return {
        (section.name, key.target.id): " ".join(ast.literal_eval(text.value).split())
        for section in ast.parse(inspect.getsource(schema)).body
        if isinstance(section, ast.ClassDef)
        for key, text in itertools.pairwise(section.body)
        if isinstance(key, ast.AnnAssign)
        and isinstance(key.target, ast.Name)
        and isinstance(text, ast.Expr)
    }

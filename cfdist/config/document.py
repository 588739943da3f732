"""`python -m cfdist.config.document > docs/configuration.md`: every key, from the schema."""

from __future__ import annotations

import inspect

from cfdist.config.installation import choice_file, group_choices, groups
from cfdist.config.messages import allowed, shown
from cfdist.config.schema import help_texts, sections
from cfdist.config.unused import conditions
from cfdist.config.uses import JOBS

_INTRODUCTION = """\
# Configuration

<!-- Made by `python -m cfdist.config.document > docs/configuration.md`; do not edit. -->

Each key is set as `key=value` on the command line, each group (a folder of `conf/`) as
`group=choice`. A key that the job or the backend does not read is refused.
`python main.py --help job=score` prints the keys of one job, `python main.py --cfg job
model.batch=16` the settings of a run. A text is what was typed, with commas and spaces; lists stand
in brackets, `null` means none. A job with a star reads the key only with certain other settings,
which its `--help` names.

## Groups
"""


def page() -> str:
    """The page, Markdown."""
    lines = [*_INTRODUCTION.split("\n"), "| group | choice | what it sets |", "|---|---|---|"]
    for group in groups():
        for choice in group_choices(group):
            lines.append(f"| `{group}` | `{choice}` | {_first_words(group, choice)} |")
    for section, fields in sections():
        if not fields:
            continue
        about = (inspect.getdoc(section) or "").partition("\n\nAttributes:")[0]
        prefix = next(iter(fields)).rpartition(".")[0]
        lines += ["", f"## {f'`{prefix}.*`' if prefix else 'All runs'}", "", *about.split("\n"), ""]
        lines += ["| key | meaning | values | default | read by `job=` |", "|---|---|---|---|---|"]
        texts = help_texts(section)
        for key, field in fields.items():
            default = "" if field.is_required() else f"`{shown(field.default)}`"
            cells = [f"`{key}`", texts[key.rpartition(".")[2]], allowed(field), default]
            cells = [_escaped(cell) for cell in (*cells, _readers(key))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A text for a cell of a table; what is no code must not look like HTML."""
    text = text.replace("|", r"\|")
    return text if text.startswith("`") else text.replace("<", "&lt;")


def _readers(key: str) -> str:
    """The jobs that read a key, those under a condition with a star."""
    found = {job: conditions(key, job) for job in JOBS}
    told = {job: needed for job, needed in found.items() if needed is not None}
    readers = [f"{job}{'*' if needed else ''}" for job, needed in told.items()]
    return "all" if readers == list(JOBS) else ", ".join(readers)


def _first_words(group: str, choice: str) -> str:
    """The comment at the top of a choice's file, up to its first example."""
    path = choice_file(group, choice)
    words = []
    for line in path.read_text().split("\n") if path else ():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        if not line.startswith("# @package"):
            words.append(line[2:].strip())
    return " ".join(words).rstrip(":")


if __name__ == "__main__":
    print(page(), end="")

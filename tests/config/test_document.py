"""docs/configuration.md is what the schema says."""

from __future__ import annotations

from pathlib import Path

from cfdist.config.document import page
from cfdist.config.installation import group_choices, groups
from cfdist.config.schema import all_fields

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_page_is_in_step_with_the_schema():
    made = page()
    assert made == PAGE.read_text(), "python -m cfdist.config.document > docs/configuration.md"


def test_the_page_has_every_key_and_choice_once():
    lines = page().split("\n")
    for key in all_fields():
        (row,) = [line for line in lines if line.startswith(f"| `{key}` | ")]
        assert row.replace(r"\|", "").count("|") == 6
        assert len(row.split("|")[2].split()) > 2
    for group in groups():
        for choice in group_choices(group):
            assert sum(line.startswith(f"| `{group}` | `{choice}` |") for line in lines) == 1

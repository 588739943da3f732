"""The page that `--help` prints."""

from __future__ import annotations

from cfdist.config.help import help_text
from cfdist.config.schema import all_fields
from cfdist.errors import ExitCode


def test_every_key_is_explained_on_a_line_of_its_own():
    lines = {line.split()[0]: line for line in help_text().splitlines() if line.strip()}
    for key, field in all_fields():
        meaning, _, allowed = lines[key].partition("[")
        assert len(meaning.split()) > 2, f"{key} is not explained"
        assert ("; default " in allowed) == (not field.is_required())


def test_every_exit_code_is_explained():
    for code in ExitCode:
        assert f"\n  {code.value:<4} {code.meaning}\n" in help_text()

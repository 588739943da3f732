"""The exit codes are what the README promises."""

from __future__ import annotations

import re
from pathlib import Path

from cfdist.command.exit_codes import ExitCode

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_names_every_exit_code_and_no_other():
    (paragraph,) = (text for text in README.read_text().split("\n\n") if "Exit codes:" in text)
    sentence = paragraph.partition("interrupted.")[0].replace("model.expected`", "")
    assert [int(code) for code in re.findall(r"\b\d+\b", sentence)] == list(ExitCode)


def test_a_code_is_a_number_with_a_meaning():
    assert max([ExitCode.DONE, ExitCode.GATE_MISSED]) == 5
    assert ExitCode(2) is ExitCode.BAD_INPUT
    assert ExitCode.BAD_INPUT.meaning == "bad input"

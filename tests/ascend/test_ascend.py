"""How a tool of the host is called, and what is said when it fails."""

from __future__ import annotations

import pytest

from cfdist.ascend import call_tool
from cfdist.errors import UserError


def test_what_the_tool_prints_comes_back(tmp_path):
    (tmp_path / "here").touch()
    script = ["sh", "-c", "ls; echo trouble >&2; read line || echo no input"]
    assert call_tool("ls", script, "", tmp_path).split("\n")[:3] == ["here", "trouble", "no input"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("seq 9; exit 3", "tool failed with exit code 3: 5 | 6 | 7 | 8 | 9; try again"),
        ("exit 1", "tool failed with exit code 1: it printed nothing; try again"),
        ("exec sleep 30", "tool: no answer within 2 s; try again"),
    ],
)
def test_a_failure_is_one_line(script, message):
    with pytest.raises(UserError) as failure:
        call_tool("tool", ["sh", "-c", script], "try again", limit_s=2)
    assert str(failure.value) == message


def test_a_tool_that_cannot_be_run(tmp_path):
    with pytest.raises(UserError, match=r"^tool: .*no_tool cannot be run \(No such file"):
        call_tool("tool", [str(tmp_path / "no_tool")], "")

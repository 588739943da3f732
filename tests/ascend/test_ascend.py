"""How the tools of the host are called, and what is said when one fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cfdist import ascend
from cfdist.ascend import call_tool, run_ais_bench
from cfdist.errors import UserError
from tests.fakes.ascend import install_double


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


def test_the_command_line_is_the_guides(monkeypatch, tmp_path):
    calls: list[list[str]] = []
    monkeypatch.setattr(ascend, "call_tool", lambda what, call, advice: calls.append(call))
    result = tmp_path / "result"
    for devices in (None, [0, 1]):
        run_ais_bench(Path("a b.om"), Path("bins"), result / "dumpout_bs4", 4, devices)
    call = [
        *(sys.executable, "-m", "ais_bench", "--model", "a b.om", "--input", "bins"),
        *("--output", str(result), "--output_dirname", "dumpout_bs4", "--batchsize", "4"),
    ]
    assert calls == [call, [*call, "--device", "0,1"]]


def test_a_failing_call_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    install_double(monkeypatch)
    (tmp_path / "bins").mkdir()
    (tmp_path / "bins" / "a.bin").write_bytes(b"1234")
    (tmp_path / "net.om").write_bytes(b"IMOD and no more")
    with pytest.raises(UserError) as failure:
        run_ais_bench(tmp_path / "net.om", tmp_path / "bins", tmp_path / "out" / "dump", 1, None)
    message = str(failure.value)
    assert "\n" not in message
    assert "ais_bench failed with exit code 1" in message
    assert "145000" in message  # the tool's own last words
    assert not any((tmp_path / "out").iterdir())

"""Work in another process, whatever becomes of that process."""

from __future__ import annotations

import io

import pytest

from cfdist.backends import child


def test_what_the_process_answers_comes_back(monkeypatch, capsys):
    monkeypatch.setattr(child.sys, "stdin", type("Input", (), {"buffer": io.BytesIO()}))

    def run(command, input, **_):
        child.sys.stdin.buffer = io.BytesIO(input)
        print("a library says something", end="")
        child.answer(lambda one, other: [one, other])
        return child.subprocess.CompletedProcess(command, 0, capsys.readouterr().out.encode())

    monkeypatch.setattr(child.subprocess, "run", run)
    assert child.call("any.module", 1, "two") == [1, "two"]


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 3", "ended its process, exit code 3"), ("exec sleep 60", "took longer than 0 s")],
)
def test_a_process_that_dies_or_hangs(monkeypatch, tmp_path, script, words):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    monkeypatch.setattr(child.sys, "executable", str(python))
    monkeypatch.setattr(child, "TIMEOUT_SECONDS", 10.0 if "exit" in script else 0.2)
    with pytest.raises(child.ChildError, match=words):
        child.call("any.module")

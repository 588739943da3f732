"""The screen holds this program's lines; what libraries print is in the run's log."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cfdist.monitoring import terminal
from tests.conftest import PROJECT


def run(code: str) -> subprocess.CompletedProcess:
    setup = "import os, sys\nfrom pathlib import Path\nfrom cfdist.monitoring import terminal\n"
    return subprocess.run(
        [sys.executable, "-c", f"{setup}terminal.guard_screen()\n{code}"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )


PRINTING = """
import subprocess
print("before")
with terminal.others_to(Path(sys.argv[1] if sys.argv[1:] else {log!r})):
    print("(raylet) a worker died")
    print("a warning", file=sys.stderr)
    os.write(1, b"of C\\n")
    os.write(2, b"an error of C\\n")
    subprocess.run(["sh", "-c", "echo of a child"])
    terminal.say("of this program")
    print("a result", file=terminal.out())
    terminal.write_error(b"interrupted\\n")
print("after")
"""


def test_what_libraries_print_goes_to_the_log(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("first\n")
    done = run(PRINTING.format(log=str(log)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "before\nof this program\na result\nafter\n"
    assert done.stderr == "interrupted\n"
    lines = log.read_text().splitlines()
    assert lines[0] == "first"
    assert sorted(lines[1:]) == [
        *("(raylet) a worker died", "a warning", "an error of C", "of C", "of a child"),
    ]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ("is_quiet=True, is_verbose=False", "before\na result\nafter\n"),
        (
            "is_quiet=False, is_verbose=True",
            "before\n(raylet) a worker died\nof C\nof a child\nof this program\na result\nafter\n",
        ),
    ],
)
def test_a_quiet_and_a_verbose_run(tmp_path, settings, shown):
    done = run(f"terminal.show({settings})\n{PRINTING.format(log=str(tmp_path / 'run.log'))}")
    assert done.stdout == shown


def test_a_log_that_stays_empty_is_none_and_one_that_cannot_be_is_no_error(tmp_path):
    for log in (tmp_path / "run.log", tmp_path / "not_there" / "run.log"):
        done = run(f"with terminal.others_to(Path({str(log)!r})):\n    terminal.say('x')")
        assert (done.stdout, done.stderr, done.returncode) == ("x\n", "", 0)
        assert not log.exists()


def test_a_line_that_waits_goes_when_something_else_comes():
    done = run(
        """
terminal.replace_line("1 of 2")
terminal.replace_line("2 of 2")
print("note", file=sys.stderr)
with terminal.others_to(Path("/dev/null/none")):
    terminal.replace_line("last")
    terminal.write_error(b"error\\n")
terminal.say("end")
"""
    )
    clear = "\x1b[K"
    # Universal newlines read each carriage return as an end of line.
    assert done.stdout.split("\n") == [
        *("1 of 2", "", f"{clear}2 of 2", "", f"{clear}last", "", f"{clear}end", ""),
    ]
    assert done.stderr == "note\nerror\n"


@pytest.mark.parametrize(
    ("is_terminal", "kind", "is_live"),
    [
        (True, "xterm", True),
        (True, "", True),
        (True, "dumb", False),
        (True, "unknown", False),
        (False, "xterm", False),
    ],
)
def test_lines_are_replaced_on_a_terminal_that_can(is_terminal, kind, is_live, monkeypatch, capsys):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    terminal.show_waiting("measuring")
    assert capsys.readouterr().out == ("measuring ...\r" if is_live else "")
    monkeypatch.setattr(terminal, "settings", terminal.Settings(is_quiet=True))
    terminal.show_waiting("measuring")
    assert capsys.readouterr().out == ""


def test_a_process_without_a_screen_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert not terminal.is_live()
    assert os.fstat(0)

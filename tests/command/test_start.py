"""The process's screen and interruptions, before anything else is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

# Prints, lets the screen go, prints more, opens a file: its descriptor's number is the exit code.
PRINTING = """
import os, sys
from cfdist.command.start import guard_screen
guard_screen()
print("first", flush=True)
print("to the other", file=sys.stderr)
sys.stdin.read()
for _ in range(3):
    print("x" * 10_000)
    print("x" * 10_000, file=sys.stderr)
number = os.open(os.devnull, os.O_RDONLY)
sys.exit(number if number > 2 else 1)
"""


def run(code: str, redirections: str = "", **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirections}', sys.executable, code],
        cwd=PROJECT,
        env={**os.environ, **environment},
        input=b"",
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "redirections",
    ["", "| head -1", "2>&1 | head -1", ">&-", "2>&-", ">&- 2>&-", ">/dev/full", "<&- >&- 2>&-"],
)
def test_whatever_the_screen_does_the_process_goes_on(redirections):
    line = f"{redirections}; exit ${{PIPESTATUS[0]}}"
    code = PRINTING.replace("sys.stdin.read()", "") if "<&-" in redirections else PRINTING
    done = run(code, line)
    assert done.returncode > 2, done
    assert b"Error" not in done.stderr
    if "head" in redirections:
        assert done.stdout.splitlines() == [b"first"] or b"other" in done.stdout


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C.UTF-8"},
    ],
)
def test_what_the_screen_cannot_show_is_an_escape(environment):
    code = (
        "import sys; from cfdist.command.start import guard_screen; guard_screen();"
        "print('caf\\udce9 \\u6587'); print('\\udce9', file=sys.stderr)"
    )
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"caf\\udce9 ")
    assert done.stderr == b"\\udce9\n"


def test_secrets_do_not_reach_the_screen():
    code = (
        "import sys; from cfdist.command.start import guard_screen; guard_screen();"
        "print('s3://key:secret@b', 'x' * 5000); print('a token-of-ray', file=sys.stderr)"
    )
    done = run(code, RAY_AUTH_TOKEN="token-of-ray")
    assert done.returncode == 0
    assert done.stdout == b"s3://key:***@b " + b"x" * 5000 + b"\n"
    assert done.stderr == b"a ***\n"


@pytest.mark.slow
def test_the_python_of_ray_is_that_of_the_node_above_this_process(tmp_path):
    python = str(tmp_path / "the python")
    child = "from cfdist.command.start import python_of_ray; print(python_of_ray())"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    flag = f'--python_worker_command="{python}" /x/worker.py --node'
    for arguments, expected in (([flag], python), ([], "None")):
        command = [sys.executable, "-c", parent, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
        assert done.stdout.strip() == expected


def test_once_a_command_was_interrupted_nothing_runs_at_its_exit():
    code = """
import atexit, os, signal, sys, time
from cfdist.command import start
def interrupted():
    atexit.register(print, "at the exit")
    sys.stdout.write("unfinished line")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
start._import = lambda: interrupted
sys.exit(start.main())
"""
    done = run(code)
    assert done.returncode == 143
    assert done.stdout == b"unfinished line"
    assert done.stderr == b"cfdist: interrupted\n"

"""The first signal ends the process in order, a later one at once, and a lost one in time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import PROJECT

# Does what it is told when a signal comes, and says so.
PROCESS = """
import signal, sys, time
from cfdist.command import interruptions
from cfdist.distributed import guard
interruptions._SECONDS_TO_END = SECONDS_TO_END
interruptions.catch()
guard.note_how_to_go_on(lambda: "; go on")

while True:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt as error:
        {reaction}
"""
IN_A_DESTRUCTOR = "type('A', (), {'__del__': lambda _: time.sleep(60)})()"
IN_ORDER = "sys.exit(interruptions.say(error))"
LOST = "pass"
IN_A_LIBRARY = "import ctypes; ctypes.CDLL(None).sleep(60)"
DONE = "interruptions.finish(7)"
IN_PYTHON_S_END = """
import os
interruptions.finish(7)
class Late:
    def __del__(self, kill=os.kill, process=os.getpid(), number=int({number})):
        kill(process, number)
sys.modules["late"] = Late()
sys.exit(7)
"""


def heed_all() -> None:
    """Ignore no signal, whatever starts the tests does (nohup, a shell's background)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(reaction: str, *prefix: str, seconds_to_end: float = 2.5) -> subprocess.Popen:
    code = f"SECONDS_TO_END = {seconds_to_end}{PROCESS.format(reaction=reaction)}"
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_all,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    "reaction",
    [IN_ORDER, *(pytest.param(one, marks=pytest.mark.slow) for one in (LOST, IN_A_LIBRARY))],
)
def test_a_signal_ends_a_process_whatever_becomes_of_its_exception(reaction):
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    processes = {number: start(reaction) for number in codes}
    began = time.monotonic()
    for number, process in processes.items():
        process.send_signal(number)
    for number, process in processes.items():
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (codes[number], "cfdist: interrupted; go on\n")
    assert time.monotonic() - began < 15  # 60 s if nothing ends it


@pytest.mark.slow
@pytest.mark.parametrize("reaction", [LOST, IN_A_LIBRARY])
def test_the_second_ends_it_at_once_unless_it_is_the_first_one_s_twin(reaction):
    process = start(reaction, seconds_to_end=40)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert (process.returncode, errors) == (143, "cfdist: interrupted; go on\n")


@pytest.mark.slow
def test_a_signal_after_the_end_changes_nothing_but_the_time():
    process = start(DONE)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (7, "")


@pytest.mark.slow
def test_what_the_caller_ignores_stays_ignored():
    process = start(IN_ORDER, "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    process.communicate()


@pytest.mark.slow
def test_an_interruption_that_nothing_can_catch_is_no_traceback():
    code = f"SECONDS_TO_END = 2.5{PROCESS.format(reaction=LOST)}"
    code = code.replace("time.sleep(60)", IN_A_DESTRUCTOR)
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "cfdist: interrupted; go on\n")


def test_a_signal_while_python_ends_changes_no_exit_code():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        code = "import sys\nfrom cfdist.command import interruptions\ninterruptions.catch()\n"
        code += IN_PYTHON_S_END.format(number=int(number))
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, preexec_fn=heed_all
        )
        assert (done.returncode, done.stderr) == (7, b"")

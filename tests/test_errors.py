"""Bad input is one line; exit codes are numbers with a meaning."""

from __future__ import annotations

import pickle
import signal
import time

import pytest

from cfdist import errors
from cfdist.errors import ExitCode, TerminatedError, UserError, raise_interruption


def test_a_message_is_one_line():
    assert str(UserError("first\n  second\nthird")) == "first second third"
    assert str(UserError("/a  b: no such folder")) == "/a  b: no such folder"
    assert str(pickle.loads(pickle.dumps(UserError("a b")))) == "a b"


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)]
)
def test_the_first_interruption_ends_the_process_and_others_change_nothing(
    monkeypatch, number, raised
):
    monkeypatch.setattr(errors, "_interrupted_at", None)
    with pytest.raises(KeyboardInterrupt) as end:
        raise_interruption(number, None)
    assert end.type is raised
    for again in (number, signal.SIGINT, signal.SIGTERM):
        raise_interruption(again, None)


def test_a_process_that_hangs_at_its_end_can_be_ended(monkeypatch):
    codes = []
    monkeypatch.setattr(errors.os, "_exit", codes.append)
    monkeypatch.setattr(errors, "_interrupted_at", time.monotonic() - errors._SECONDS_TO_END - 1)
    raise_interruption(signal.SIGINT, None)
    raise_interruption(signal.SIGTERM, None)
    assert codes == [ExitCode.INTERRUPTED, ExitCode.TERMINATED]


def test_exit_codes_are_those_of_the_readme():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "INTERNAL": 1,
        "BAD_INPUT": 2,
        "PICTURES_FAILED": 3,
        "PAST_TOLERANCE": 4,
        "GATE_MISSED": 5,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
    assert all(code.meaning for code in ExitCode)

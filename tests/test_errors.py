"""Bad input is one line; exit codes are numbers with a meaning."""

from __future__ import annotations

import pickle

from cfdist.errors import ExitCode, UserError


def test_a_message_is_one_line():
    assert str(UserError("first\n  second\nthird")) == "first second third"
    assert str(UserError("/a  b: no such folder")) == "/a  b: no such folder"
    assert str(pickle.loads(pickle.dumps(UserError("a b")))) == "a b"


def test_exit_codes_are_those_of_the_readme():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "INTERNAL": 1,
        "BAD_INPUT": 2,
        "PICTURES_FAILED": 3,
        "PAST_TOLERANCE": 4,
        "GATE_MISSED": 5,
        "DISK_FULL": 6,
        "HUNG_UP": 129,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
    assert all(code.meaning for code in ExitCode)

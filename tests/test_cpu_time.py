"""Processor time over processes."""

from __future__ import annotations

import subprocess
import sys

from cfdist.cpu_time import process_times, seconds_between

# Half a second of work, then waits to be told to end.
WORK = """
import sys, time
while time.process_time() < 0.5:
    pass
print("done", flush=True)
sys.stdin.read()
"""


def test_what_a_child_works_counts_and_what_was_before_does_not():
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        before = process_times()
        process.stdout.readline()
        after = process_times()
        process.stdin.close()
    assert {pid for pid, _ in after} >= {process.pid}
    # All of the child's time but what it had before the first look.
    worked = 0.5 - sum(seconds for (pid, _), seconds in before.items() if pid == process.pid)
    assert seconds_between(before, after) >= worked - 0.05


def test_differences_are_by_process_and_not_by_its_number():
    before = {(1, 10.0): 5.0, (2, 10.0): 1.0, (3, 10.0): 7.0}
    after = {(1, 10.0): 6.0, (2, 20.0): 4.0, (4, 30.0): 0.5}
    assert seconds_between(before, after) == 1.0 + 4.0 + 0.5

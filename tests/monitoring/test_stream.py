"""Events for programs: whatever happens, each line of the standard output is a JSON object."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import PROJECT


def run(code: str, reader: str = "cat") -> tuple[list[dict], str, int]:
    """The events, standard error and exit code of Python code whose stream is on."""
    setup = "import os, sys\nfrom cfdist.monitoring import stream, terminal\n"
    code = f"{setup}terminal.guard_screen()\nstream.turn_on()\n{code}"
    line = f'"$0" -c "$1" | {reader}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr, done.returncode


def test_lines_for_people_are_events_and_what_others_print_goes_to_stderr():
    events, errors, _ = run(
        """
terminal.say("one line")
print("two\\n  lines ", file=terminal.out())
print("a library's")
os.write(1, b"of C\\n")
stream.emit("progress", done=1, rate=None, text="café s3://key:secret@b", names=("a", 1.5, True))
stream.end(3)
stream.end(4)
"""
    )
    assert [one.pop("version") for one in events] == [1] * 5
    assert all(one.pop("time") > 1.7e9 for one in events)
    progress = {"done": 1, "rate": None, "text": "café s3://key:***@b", "names": ["a", 1.5, True]}
    assert events == [
        {"event": "message", "text": "one line"},
        {"event": "message", "text": "two"},
        {"event": "message", "text": "  lines"},
        {"event": "progress", **progress},
        {"event": "end", "exit_code": 3, "output_dir": None, "results": None, "ap": {}},
    ]
    assert errors == "a library's\nof C\n"


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_the_last_line_names_the_results_of_the_only_run(runs):
    code = "content = {'ap': {'official': {'easy': 0.5}}, 'pictures': {'done': 1}}\n"
    for number in range(runs):
        code += f"stream.end_run('out/{number}', 0, 'out/{number}/results.json', content)\n"
    events, _, _ = run(code + "stream.end(0)")
    assert [one["event"] for one in events] == ["run_end"] * runs + ["end"]
    assert events[0]["pictures"] == {"done": 1}
    assert "test" in events[0]
    last = events[-1]
    assert last["results"] == ("out/0/results.json" if runs == 1 else None)
    assert last["ap"] == ({"official": {"easy": 0.5}} if runs == 1 else {})


@pytest.mark.slow
def test_an_interruption_in_the_middle_of_long_lines_cuts_none():
    events, _, code = run(
        """
import signal, time
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    while True:
        stream.emit("message", text="x" * 100_000)
        time.sleep(0.001)
except KeyboardInterrupt:
    stream.end(130)
sys.exit(130)
"""
    )
    assert code == 130
    assert events[-1]["event"] == "end"
    assert len(events) > 1


def test_nothing_follows_the_last_line():
    events, _, _ = run(
        "stream.end(2)\nstream.emit('progress', done=1)\nstream.end_run('x', 0, None, {})"
    )
    assert [one["event"] for one in events] == ["end"]


@pytest.mark.slow
def test_a_pipe_that_takes_no_more_at_once_gets_whole_lines():
    events, _, _ = run(
        """
os.set_blocking(stream._writer.descriptor, False)
for _ in range(20):
    stream.emit("message", text="x" * 50_000)
stream.end(0)
""",
        reader="(sleep 0.5; cat)",
    )
    assert [one["event"] for one in events] == ["message"] * 20 + ["end"]


def test_progress_is_left_out_while_the_reader_is_far_behind(tmp_path):
    sent = tmp_path / "sent"
    events, _, _ = run(
        f"""
for number in range(5000):
    stream.emit("progress", text="x" * 1000)
open({str(sent)!r}, "w").close()
stream.emit("message", text="the same")
stream.end(0)
""",
        reader=f"(until [ -e '{sent}' ]; do sleep 0.05; done; cat)",
    )
    kinds = [one["event"] for one in events]
    assert 1000 <= kinds.count("progress") < 2000
    assert kinds[-2:] == ["message", "end"]


@pytest.mark.slow
def test_a_reader_that_goes_away_stops_nothing():
    _, errors, code = run(
        """
for _ in range(1000):
    stream.emit("message", text="x" * 1000)
stream.end(7)
sys.exit(7)
""",
        reader="head -1",
    )
    assert (errors, code) == ("", 7)


def test_without_the_stream_nothing_is_written(capfd):
    from cfdist.monitoring import stream

    stream.emit("message", text="x")
    stream.end(0)
    assert not stream.is_on()
    assert capfd.readouterr() == ("", "")

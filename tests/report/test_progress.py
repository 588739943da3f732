"""How a run goes on, on terminals of any width, in pipes, and as events."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.monitoring.monitor import Snapshot
from cfdist.report.progress import live_line, plain_line
from tests.conftest import PROJECT


def device(number: int, rate: float | None = 20.0, busy: float | None = 0.97) -> dict:
    return {"name": f"device:{number}", "done": 1, "failed": 0, "rate": rate, "busy": busy}


STATE = Snapshot(True, 12.0, 3226, 1234, 0, 41.23, 48.3, [device(0), device(1, 21.2, 0.9)], {})


def test_a_plain_line_says_all():
    assert plain_line(STATE) == (
        "pictures 1234/3226 41.2/s ETA 0:00:48, "
        "device:0 20.0/s busy 97 %, device:1 21.2/s busy 90 %"
    )
    early = replace(STATE, rate=None, seconds_left=None, failed=2, devices=[device(0, None, None)])
    assert plain_line(early) == "pictures 1234/3226 (2 failed) -/s ETA -"
    assert plain_line(replace(STATE, is_ready=False)) == "loading the model, 12 s"


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (200, "pictures 1234/3226 41.2/s ETA 0:00:48, device:0 20.0/s busy 97 %, device:1 21.2/s"),
        (90, "pictures 1234/3226 41.2/s ETA 0:00:48, 2 devices 20.0 to 21.2/s each"),
        (80, "pictures 1234/3226 41.2/s ETA 0:00:48, 2 devices busy 90 to"),
        (40, "pictures 1234/3226 41.2/s ETA 0:00:48"),
        (30, "1234/3226 41.2/s ETA 0:00:48"),
        (20, "1234/3226 41.2/s"),
        (10, "1234/3226"),
        (5, "1234/"),
        (0, ""),
    ],
)
def test_a_live_line_says_what_fits(width, text):
    assert live_line(STATE, width).startswith(text)


def test_many_devices_are_summed_up():
    many = replace(STATE, devices=[device(n, 1.0 + n, 0.5) for n in range(64)])
    assert "64 devices 1.0 to 64.0/s each, busy 50 %" in live_line(many, 200)
    assert "64 devices busy 50 %" in live_line(many, 60)
    alike = replace(STATE, devices=[device(n, 2.04, None) for n in range(63)])
    assert live_line(alike, 200).endswith(" 63 devices 2.0/s each")
    early = replace(STATE, devices=[device(n, None, None) for n in range(63)])
    assert live_line(early, 200).endswith(" 63 devices")


@given(
    st.integers(0, 300),
    st.integers(0, 30),
    st.none() | st.floats(0, 1e9),
    st.none() | st.floats(0, 1e9),
    st.none() | st.floats(0, 1),
)
def test_a_live_line_fits_whatever_there_is_to_say(width, devices, rate, left, busy):
    state = replace(
        *(STATE,),
        rate=rate,
        seconds_left=left,
        devices=[device(number, rate, busy) for number in range(devices)],
    )
    for one in (state, replace(state, is_ready=False)):
        assert len(live_line(one, width)) <= width
        assert "\n" not in plain_line(one)


PLAYED = """
import sys, time
from pathlib import Path
from cfdist.monitoring import stream, terminal
from cfdist.monitoring.monitor import DeviceUsage
terminal.guard_screen()
if "json" in sys.argv:
    stream.turn_on()
from cfdist.report import progress
terminal.show("quiet" in sys.argv, False)
progress._PLAIN_SECONDS = progress._EVENT_SECONDS = 0.2
with terminal.others_to(Path(sys.argv[1], "run.log")):
    with progress.PictureProgress(60, "out") as shown:
        time.sleep(0.5)
        shown.monitor.start(0)
        for number in range(60):
            time.sleep(0.05)
            print("(raylet) a worker died", flush=True)
            shown.monitor.add(1, 0, f"device:{number % 2}")
            shown.monitor.note_usage(f"device:{number % 2}", DeviceUsage(0.05, 0.0, ()))
stream.end(0)
"""


def set_width(screen: int, columns: int) -> None:
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))


def play_on_terminal(folder, widths: list[int], **environment: str) -> list[str]:
    """What a terminal gets that has one width after the other, a second each."""
    child, screen = pty.fork()
    if child == 0:
        time.sleep(0.1)  # until the width is set
        os.chdir(PROJECT)
        inherited = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
        environment = {**inherited, "TERM": "xterm", "PYTHONPATH": str(PROJECT), **environment}
        os.execve(sys.executable, [sys.executable, "-c", PLAYED, str(folder)], environment)
    shown, began = b"", 0.0
    set_width(screen, widths[0])
    while True:
        try:
            shown += os.read(screen, 10_000)
        except OSError:
            break
        began = began or time.monotonic()
        set_width(screen, widths[min(int(time.monotonic() - began), len(widths) - 1)])
    _, status = os.waitpid(child, 0)
    assert status == 0, shown
    return re.split(r"[\r\n]+", shown.decode())


@pytest.mark.slow
@pytest.mark.parametrize("widths", [[60], [80], [200], [200, 80, 60]])
def test_on_a_terminal_one_line_is_replaced_and_fits(tmp_path, widths):
    shown = play_on_terminal(tmp_path, widths)
    lines = [line.removeprefix(b"\\x1b[K".decode("unicode_escape")) for line in shown]
    assert not any("raylet" in line or "\x1b" in line for line in lines)
    live = [line for line in lines if line.startswith("pictures ")][:-1]
    assert len(live) >= 6
    # The last line stays, and a terminal wraps what a person may want to read.
    assert max(map(len, live)) < widths[0]
    assert max(map(len, live[-2:])) < widths[-1]
    if widths[0] == 200:
        assert any("device:1 " in line and "busy " in line for line in live)
    assert any(line.startswith("loading the model") for line in lines)
    assert lines[-2].startswith("pictures 60/60 ")
    assert "(raylet) a worker died" in (tmp_path / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["50", "200"])
def test_columns_make_the_line_narrower_but_not_wider(tmp_path, columns):
    shown = play_on_terminal(tmp_path, [60], COLUMNS=columns)
    live = [line for line in shown if "pictures " in line][:-1]
    lengths = [len(re.sub(r"\x1b\[K", "", line)) for line in live]
    assert max(lengths) < min(60, int(columns))


@pytest.mark.slow
def test_colours_and_dumb_terminals(tmp_path):
    shown = play_on_terminal(tmp_path, [80], NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*m", "".join(shown))
    shown = play_on_terminal(tmp_path, [80], TERM="dumb")
    assert "\x1b" not in "".join(shown)
    assert sum(line.startswith("pictures ") for line in shown) > 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "quiet", "json"])
def test_in_a_pipe_lines_are_plain_or_events(tmp_path, how):
    done = subprocess.run(
        [sys.executable, "-c", PLAYED, str(tmp_path), how],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    if how == "quiet":
        assert lines == []
    elif how == "json":
        events = [json.loads(line) for line in lines]
        kinds = [one["event"] for one in events]
        assert kinds[0] == "loading"
        assert kinds[-2:] == ["progress", "end"]
        done = [one["done"] for one in events if one["event"] == "progress"]
        assert done == sorted(done)
        assert done[-1] == events[-2]["total"] == 60
        first = events[-2]["devices"][0]
        assert first.keys() == {"name", "done", "failed", "rate", "busy"}
        assert first["done"] == 30
        assert 0 < first["busy"] <= 1
    else:
        assert lines[0].startswith("loading the model")
        assert lines[-1].startswith("pictures 60/60 ")
        assert 6 < len(lines) < 30

"""What may prevent Ray from starting on this machine, and how that is said."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cfdist.distributed import starting
from cfdist.errors import UserError

TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in (*TOKEN_VARIABLES, "RAY_TMPDIR", "TMPDIR"):
        # Set first, so that what the code under test sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_settings_of_the_user_stay(monkeypatch):
    for name in starting._ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1")
    starting.prepare_environment()
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_loopback_of_this_machine_works():
    starting.check_loopback()


def test_a_machine_without_loopback_is_refused(monkeypatch):
    def unreachable(*_, **__):
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(UserError, match=r"loopback .*127.0.0.1: Network is unreachable.*lo up"):
        starting.check_loopback()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of this test alone with a short path; pytest's own are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_the_user_s_folder_is_taken_if_it_works(short, monkeypatch, name):
    monkeypatch.setenv(name, str(short))
    assert starting.ray_folder() == short
    assert list(short.iterdir()) == []


def test_a_relative_folder_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("TMPDIR", ".")
    assert starting.ray_folder() == Path("/tmp")


@pytest.mark.parametrize("case", ["long", "missing", "file", "letters"])
def test_a_short_folder_is_taken_in_place_of_one_that_does_not_work(
    tmp_path, short, monkeypatch, case
):
    bad = {
        "long": tmp_path / ("x" * 60),
        "missing": short / "not" / "there",
        "file": Path("/dev/null"),
        "letters": short / "é",
    }
    if case in ("long", "letters"):
        bad[case].mkdir()
    monkeypatch.setenv("TMPDIR", str(bad[case]))
    assert starting.ray_folder() in (Path("/tmp"), Path("/var/tmp"))


def test_a_path_of_the_longest_name_fits_a_socket(short):
    name = starting._SOCKET_NAME
    longest = starting._SOCKET_BYTES - len(name)
    folder = short / ("y" * (longest - len(f"{short}/")))
    assert len(str(folder)) + len(name) == 107
    assert starting.unusable(Path(f"{folder}y")) == "its path is too long for sockets"
    folder.mkdir()
    try:
        assert starting.unusable(folder) is None
    finally:
        folder.rmdir()


def test_a_machine_without_a_usable_folder_is_refused_in_one_line(monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(starting.shutil, "disk_usage", lambda path: usage(3_000_000))
    monkeypatch.setenv("TMPDIR", "/tmp")
    with pytest.raises(UserError, match=r"TMPDIR=/tmp: .*only 3 MB are free.*RAY_TMPDIR=") as error:
        starting.ray_folder()
    assert "\n" not in str(error.value)


def test_a_token_is_made_once_and_only_its_user_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    starting.ensure_token(tmp_path)
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    starting.ensure_token(tmp_path)
    assert path.read_text() == token
    assert list(path.parent.iterdir()) == [path]


START = """
import sys, time
from pathlib import Path
from cfdist.distributed.starting import one_start_at_a_time
with one_start_at_a_time(Path(sys.argv[1])):
    began = time.monotonic()
    time.sleep(0.2)
    print(began, time.monotonic())
"""


@pytest.mark.slow
def test_commands_that_start_at_once_start_one_after_the_other(tmp_path):
    starts = [
        subprocess.Popen([sys.executable, "-c", START, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    times = sorted(tuple(map(float, start.communicate(timeout=60)[0].split())) for start in starts)
    assert all(ended <= began for (_, ended), (began, _) in pairwise(times))


def test_a_start_that_hangs_does_not_stop_the_others_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "_LONGEST_WAIT", 0.2)
    began = time.monotonic()
    with starting.one_start_at_a_time(tmp_path), starting.one_start_at_a_time(tmp_path):
        assert 0.2 <= time.monotonic() - began < 30
    with starting.one_start_at_a_time(tmp_path / "missing"):
        pass


MAKE_TOKEN = """
import sys
import tempfile
from pathlib import Path
from cfdist.distributed.starting import ensure_token
sys.stdin.readline()
ensure_token(Path("/tmp"))
print(Path.home().joinpath(".ray", "auth_token").read_text())
"""


@pytest.mark.slow
def test_commands_that_start_at_once_agree_on_one_token(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path)}
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE_TOKEN],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(4)
    ]  # fmt: skip
    tokens = {command.communicate("go\n", timeout=60)[0] for command in commands}
    assert len(tokens) == 1
    assert len(tokens.pop().strip()) == 64


def test_a_home_that_cannot_be_written_to_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    starting.ensure_token(tmp_path)
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert path.parent == tmp_path
    assert len(path.read_text()) == 64
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert starting.token_command() == f"cat {path}"


@pytest.mark.parametrize(
    "setting",
    [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_TOKEN_PATH", "p")],
)
def test_a_token_that_is_given_or_not_wanted_is_not_made(tmp_path, monkeypatch, setting):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(*setting)
    starting.ensure_token(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_dashboard_s_token_can_be_printed(monkeypatch):
    assert starting.token_command() is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    command = starting.token_command()
    assert command.endswith("ray get-auth-token")
    assert Path(command.split()[0]).is_file()


def test_the_object_store_fits_a_limit_that_ray_does_not_see(monkeypatch):
    free = 4_000_000_000
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(starting.shutil, "disk_usage", lambda path: usage(10**12))
    for available, store in ((10**9, 300_000_000), (10**6, 80 << 20)):
        monkeypatch.setattr(starting, "available_memory", lambda value=available: value)
        assert starting._memory_options() == {"object_store_memory": store}
    monkeypatch.setattr(starting, "available_memory", lambda: free)
    assert starting._memory_options() == {}


@pytest.fixture
def ray(monkeypatch):
    """A Ray whose starts do what a list says: an exception is raised, another value returned."""
    outcomes: list = []

    def init(**_):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    return outcomes


def test_a_start_that_fails_once_is_tried_again(ray, tmp_path):
    ray += [RuntimeError("port in use"), "context"]
    assert starting._init({}, SimpleNamespace(), tmp_path) == "context"


def test_a_start_that_fails_twice_says_why_in_one_line(ray, tmp_path):
    logs = tmp_path / f"session_2026-01-01_00-00-00_0_{os.getpid()}" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text(
        "[2026-01-01 00:00:00,000 I 1 1] (raylet) main.cc:1: starting\n"
        "[2026-01-01 00:00:01,000 E 1 1] (raylet) agent.cc:7: the agent did not answer\n"
        "[2026-01-01 00:00:01,000 I 1 1] (raylet) main.cc:2: ending\n"
    )
    kept: list[int] = []
    guard = SimpleNamespace(keep_folder=lambda: kept.append(1))
    ray += [RuntimeError("one"), RuntimeError("\ntimed out\n\nmore\nno port\n")]
    with pytest.raises(UserError) as error:
        starting._init({}, guard, tmp_path)
    expected = "Ray does not start on this machine: timed out no port (the agent did not answer); "
    assert str(error.value).startswith(expected)
    assert str(logs) in str(error.value)
    assert kept == [1]  # else the logs would go with the command


def test_what_a_failed_start_leaves_is_ended_and_nothing_else(ray):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep) as own:
        before = set(psutil.Process().children(recursive=True))
        with subprocess.Popen(sleep) as left:
            starting._end_what_was_started(before)
            assert not psutil.pid_exists(left.pid)
        assert own.poll() is None
        own.kill()


def test_the_object_store_is_in_the_session_s_folder_without_shared_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(starting, "_SHARED_MEMORY", tmp_path)
    assert starting._folders(tmp_path / "s") == {"_temp_dir": str(tmp_path / "s")}
    monkeypatch.setattr(starting, "_SHARED_MEMORY", tmp_path / "none")
    assert starting._folders(tmp_path / "s")["_plasma_directory"] == str(tmp_path / "s")

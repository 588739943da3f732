"""Command lines one after another in one process and one Ray session.

Most of a short command's time goes into imports and the start of Ray. Tests of what a command
finds, writes and says need neither of their own; `command` in conftest.py starts a process.

`python tests/commands.py` is that process: a line of its input is a request, one of its output the
exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# What the environments of two commands may differ in: no process of Ray's reads these.
_OF_A_COMMAND = ("COLUMNS", "PATH", "XDG_CACHE_HOME", "FAKE_ATC_FAIL", "CFDIST_PYTHONPATH")
_OF_A_TEST = ("PYTEST_CURRENT_TEST",)

# Set where the double of ais_bench is installed, see `tests.fakes.ascend.install_double`.
HAS_NPUS = "AIS_BENCH_DOUBLE_GENERATION"

# Settings of the process and of the session.
_OF_A_SESSION = ("cluster.address=", "cluster.keep_minutes=", "progress=", "verbose=")


class Commands:
    """Runs commands in a process of their own, which starts with the first one."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        """`folder` is where Ray's processes are at home; no test removes it."""
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def fits(self, arguments: tuple[str, ...]) -> bool:
        """Whether a command can share the process and the session: it wants no other of either."""
        wants_more = any(argument.startswith(_OF_A_SESSION) for argument in arguments)
        return _shared(os.environ) == _shared(self._environment) and not wants_more

    def run(
        self, arguments: tuple[str, ...], cwd: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """What became of a command, which ran in a folder.

        Raises:
            TimeoutExpired: it took longer, and was ended with its process.
        """
        with self._lock, tempfile.TemporaryDirectory() as said:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, __file__, str(self._folder)],
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            process, files = self._process, [Path(said, name) for name in ("out", "err")]
            request = {"arguments": arguments, "cwd": str(cwd), "files": [*map(str, files)]}
            request["environment"] = {name: os.environ.get(name) for name in _OF_A_COMMAND}
            print(json.dumps(request), file=process.stdin, flush=True)
            is_over, _, _ = select.select([process.stdout], [], [], timeout)
            if not is_over:
                process.kill()
            code = process.stdout.readline()
            if not code:
                self.end()
            output, errors = (path.read_text() if path.exists() else "" for path in files)
            if not is_over:
                raise subprocess.TimeoutExpired(arguments, timeout, output, errors)
            # A process that ends in a command is that command's end.
            return subprocess.CompletedProcess(
                arguments, int(code) if code else process.returncode, output, errors
            )

    def end(self) -> None:
        """End the process and its Ray session."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait(timeout=60)
            process.stdout.close()


def _shared(environment: Mapping[str, str]) -> dict[str, str]:
    """What commands that share a process cannot have otherwise."""
    left_out = (*_OF_A_COMMAND, *_OF_A_TEST)
    return {name: text for name, text in environment.items() if name not in left_out}


def serve(folder: str) -> None:
    """Run the commands that the standard input asks for, until its end."""
    answers = os.fdopen(os.dup(1), "w")
    screen = os.open(os.devnull, os.O_WRONLY)
    _lead((screen, screen))

    from omegaconf import OmegaConf

    from cfdist.command import cli, interruptions
    from cfdist.config import composing, installation
    from cfdist.distributed import guard, session
    from cfdist.monitoring import terminal

    interruptions.catch()
    terminal.guard_screen()
    composing.register()
    # Each command has a number of its own in the name of its folder.
    number = 0
    OmegaConf.register_new_resolver("process_id", lambda: f"{os.getpid()}{number:03}", replace=True)
    with _one_session(folder) as end_actors:
        for line in sys.stdin:
            number += 1
            request = json.loads(line)
            files = [os.open(name, os.O_WRONLY | os.O_CREAT, 0o600) for name in request["files"]]
            _lead(files)
            os.chdir(request["cwd"])
            for name, value in request["environment"].items():
                os.environ.pop(name, None)
                os.environ |= {name: value} if value is not None else {}
            os.environ[cli.STARTED_VARIABLE] = repr(time.time())
            sys.argv[:] = [str(PROJECT / "main.py"), *request["arguments"]]
            sys.orig_argv[:] = [sys.executable, *sys.argv]
            try:
                code = int(cli.main())
            except SystemExit as ended:
                code = int(ended.code or 0)
            except Exception:
                traceback.print_exc()
                code = 1
            cli.outcomes.clear()
            session.share_sessions(False)
            installation.config_folders[1:] = []
            terminal.show(is_quiet=False, is_verbose=False)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            _lead((screen, screen))
            [os.close(file) for file in files]
            end_actors()
            print(code, file=answers, flush=True)
    guard.end_guard()


def _lead(files) -> None:
    """Lead what is printed into files."""
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file, number)


@contextlib.contextmanager
def _one_session(folder: str):
    """Start Ray with the first run that wants it, and let each run take the last one's processes.

    Yields a function that ends actors that a run has left in the middle of their work.
    """
    from cfdist.distributed import actors, session

    own_session = session.own_session
    with contextlib.ExitStack() as stack:
        left = session.SharedSession((), stack, None)

        def shared(address, dashboard, kind, devices, keep_minutes=None):
            import ray

            if not ray.is_initialized():
                left.idle.clear()
                here = os.getcwd()
                os.chdir(folder)
                if HAS_NPUS in os.environ:  # the next command may want them
                    kind, devices = "npu", "auto"
                try:
                    stack.enter_context(own_session(None, False, kind, devices))
                finally:
                    os.chdir(here)
            return own_session(address, dashboard, kind, devices, keep_minutes)

        def end_actors() -> None:
            if (ray := sys.modules.get("ray")) and ray.is_initialized():
                names = {*ray.util.list_named_actors()} - left.idle.keys()
                actors.kill_actors({name: ray.get_actor(name) for name in names})

        session.own_session = shared
        actors.shared_session = lambda: left
        yield end_actors


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    serve(sys.argv[1])

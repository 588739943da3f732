"""The head of the cluster: a run cannot go on without it, and does not wait for it for ever.

Ray's own limit is 60 s, after which it aborts the process.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

from cfdist.distributed import guard
from cfdist.distributed.joining import answer_of, own_token
from cfdist.errors import ExitCode, StoppedError
from cfdist.monitoring import stream, terminal

_PERIOD_SECONDS = 2.0
_LONGEST_WAIT = 40.0  # seconds: less than Ray's own
_SECONDS_TO_END = 10.0  # for what was interrupted; some calls into Ray cannot be

# What a call gives that nothing answers.
_SILENCE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")

_lost = threading.Event()

log = logging.getLogger(__name__)


def is_silent() -> bool:
    """Whether the head of this process's session is gone: calls that need it would hang."""
    import ray

    return _lost.is_set() or _is_silent(ray.get_runtime_context().gcs_address)


@contextlib.contextmanager
def head_watched(wait_s: float) -> Iterator[None]:
    """End what the main thread does in the `with` block if the head is silent for `wait_s` seconds.

    Raises:
        StoppedError: in the main thread, which has no other way out of a call into Ray.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = threading.Event()
    _lost.clear()

    def interrupt(*_: object) -> None:
        if not ended.is_set():
            raise KeyboardInterrupt  # Ray's calls let no other exception pass

    import ray

    address = ray.get_runtime_context().gcs_address
    # It stays: the thread's signal may come when the block has ended, and would kill the process.
    signal.signal(signal.SIGUSR2, interrupt)
    seconds = min(wait_s, _LONGEST_WAIT)
    threading.Thread(target=_watch, args=(address, seconds, ended), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not _lost.is_set():
            raise
        raise StoppedError(_line(address, seconds), ExitCode.INTERNAL) from None
    finally:
        ended.set()


def _line(address: str, seconds: float) -> str:
    return f"the head of the Ray cluster ({address}) has not answered for {seconds:.0f} s"


def _is_silent(address: str) -> bool:
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return False  # such a head answers no plain question; Ray's own limits hold
    shows_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    try:
        return answer_of(address, own_token() if shows_token else "") in _SILENCE
    except Exception as error:  # not an answer of the head: nothing is known of it
        log.warning("the head of the cluster could not be asked", exc_info=error)
        return False


def shut_down() -> None:
    """`ray.shutdown`; a command leaves a session whose head is gone to its guard.

    `ray.shutdown` waits for such a head, and may end the process without a word when it gives up.
    """
    import ray

    if not is_silent():
        ray.shutdown()
        return
    atexit.unregister(ray.shutdown)
    guard.leave_ray()
    if not terminal.is_guarded():  # the process goes on
        end_left_session()


def end_left_session() -> None:
    """End the session whose head is gone, if this process has left one, to make room for another.

    It goes on ending in a thread if that takes too long.
    """
    if not guard.has_left_ray():
        return
    import ray

    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_END)
    guard.leave_ray(thread.is_alive())


def _watch(address: str, seconds: float, ended: threading.Event) -> None:
    """Interrupt the main thread if nothing answers for so long; end the process if that fails."""
    since = None  # of the silence: this process may itself have been stopped for long
    while not ended.wait(_PERIOD_SECONDS):
        if not _is_silent(address):
            since = None
        elif since is None:
            since = time.monotonic()
        elif time.monotonic() - since > seconds and not ended.is_set():
            _lost.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
            if not ended.wait(_SECONDS_TO_END):
                line = f"{_line(address, seconds)}; resume=<output_dir> goes on later"
                terminal.write_error(f"cfdist: {line}\n".encode())
                stream.emit("error", exit_code=ExitCode.INTERNAL, message=line)
                stream.end(ExitCode.INTERNAL)
                os._exit(ExitCode.INTERNAL)
            return

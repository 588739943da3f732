"""What a run cannot go on without: the cluster's head, and Ray's node process on this host.

It does not wait for the head for ever; Ray's own limit is 60 s, after which it aborts the process.
Without the node process Ray ends this one, silently, as soon as it needs the object store.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

from cfdist.distributed import guard
from cfdist.distributed.joining import answer_of, own_token
from cfdist.errors import ExitCode, StoppedError
from cfdist.files import redacted
from cfdist.monitoring import stream, terminal

_PERIOD_SECONDS = 2.0
_LONGEST_WAIT = 40.0  # seconds: less than Ray's own
_SECONDS_TO_END = 10.0  # for what was interrupted; some calls into Ray cannot be

# What a call gives that nothing answers.
_SILENCE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")

# What ends the node process may be a signal to all processes, which this one gets a moment later.
_SIGNAL_SECONDS = 1.0

_interrupting = threading.Lock()
_lost = threading.Event()
_why = ""  # what is lost, once it is

log = logging.getLogger(__name__)


def is_silent() -> bool:
    """Whether this process's session has lost what calls into Ray need: they would hang."""
    import ray

    address = ray.get_runtime_context().gcs_address
    return _lost.is_set() or not _has_node(_node_path()) or bool(_silent(address))


@contextlib.contextmanager
def head_watched(wait_s: float) -> Iterator[None]:
    """End what the main thread does in the `with` block if the head is silent for `wait_s` seconds.

    Or if the node process is, or has ended: it does not come back.

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
    path = _node_path()
    if not _has_node(path):
        _lose(guard.NODE_IS_GONE)
        raise StoppedError(guard.NODE_IS_GONE, ExitCode.INTERNAL)
    watch = threading.Thread(target=_watch, args=(address, path, seconds, ended), daemon=True)
    watch.start()
    try:
        try:
            yield
        finally:
            with _interrupting:  # one watch's signal never comes in the next one's block
                ended.set()
    except (KeyboardInterrupt, Exception) as error:
        ended.set()
        # Without the node process anything may fail before this thread is interrupted.
        if not (_lost.is_set() or isinstance(error, KeyboardInterrupt) or _has_node(path)):
            time.sleep(_SIGNAL_SECONDS)
            _lose(guard.NODE_IS_GONE)
        if not _lost.is_set():
            raise
        raise StoppedError(_why, ExitCode.INTERNAL) from error


def _silent(address: str) -> str:
    """What does not answer, the head at an address or this host's node process; empty: both do."""
    if _is_silent(address):
        return f"the head of the Ray cluster ({address})"
    from ray._private import worker

    node = worker._global_node
    port = getattr(node, "node_manager_port", None)
    # It knows no such call, and says so.
    if node is not None and port and _is_silent(f"{node.node_ip_address}:{port}"):
        return "Ray's node process on this host"
    return ""


def _node_path() -> str | None:
    """Where Ray's node process of this host listens; `None`: this process knows none."""
    from ray._private import worker

    node = worker._global_node
    return None if node is None else str(node.raylet_socket_name)


def _node(path: str | None) -> socket.socket | None:
    """A connection to the node process that listens there, over which nothing goes.

    Returns:
        It is readable once the process has ended, or if there was no connection; `None`: the
        process has ended.
    """
    there = socket.socket(socket.AF_UNIX)
    there.setblocking(False)
    try:
        if path is not None:
            there.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        there.close()
        return None
    except OSError:  # it has too many to answer
        pass
    return there


def _has_node(path: str | None) -> bool:
    """Whether the node process that listens there is there."""
    node = _node(path)
    if node is not None:
        node.close()
    return node is not None


def _is_silent(address: str) -> bool:
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return False  # such a head answers no plain question; Ray's own limits hold
    shows_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    try:
        return answer_of(address, own_token() if shows_token else "") in _SILENCE
    except Exception as error:  # not an answer of the head: nothing is known of it
        log.warning("the head of the cluster could not be asked", exc_info=error)
        return False


def shut_down(stays: bool = False) -> None:
    """`ray.shutdown`; a command leaves a session whose head is gone to its guard.

    `ray.shutdown` waits for such a head, and may end the process without a word when it gives up.
    It waits a third of a second for nothing where the session `stays`: a command that ends leaves
    that one, too.
    """
    import ray

    guard.be_silent()
    if not (stays and terminal.is_guarded()) and not is_silent():
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


def _watch(address: str, path: str | None, seconds: float, ended: threading.Event) -> None:
    """Interrupt the main thread if nothing answers for so long, or without a node process."""
    since = None  # of the silence: this process may itself have been stopped for long
    ended.wait(_PERIOD_SECONDS)  # until the block has begun, which an interruption ends
    with contextlib.closing(_node(path) or socket.socket()) as node:
        end_of_node = select.poll()
        end_of_node.register(node, select.POLLIN)
        while not ended.is_set():
            if end_of_node.poll(1000 * _PERIOD_SECONDS):
                if not _has_node(path):
                    ended.wait(_SIGNAL_SECONDS)
                    _interrupt(guard.NODE_IS_GONE, ended)
                    return
                ended.wait(_PERIOD_SECONDS)
            if ended.is_set() or not (who := _silent(address)):
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > seconds:
                _interrupt(f"{who} has not answered for {seconds:.0f} s", ended)
                return


def _lose(why: str) -> None:
    """Note that the session has lost what a run needs."""
    global _why
    _why = why
    _lost.set()


def _interrupt(why: str, ended: threading.Event) -> None:
    """Interrupt the main thread; end the process if that fails."""
    with _interrupting:
        if ended.is_set():
            return
        _lose(why)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
    if not ended.wait(_SECONDS_TO_END):
        guard.be_silent()
        how = ""
        with contextlib.suppress(Exception):
            how = guard.how_to_go_on()
        line = redacted(f"{why}{how}")
        terminal.write_error(f"cfdist: {line}\n".encode())
        stream.emit("error", exit_code=ExitCode.INTERNAL, message=line)
        stream.end(ExitCode.INTERNAL)
        os._exit(ExitCode.INTERNAL)

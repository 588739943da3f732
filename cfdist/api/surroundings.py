"""A run inside of somebody else's process: what that process has set up is left as it was."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

from hydra.core.global_hydra import GlobalHydra

from cfdist.config.installation import CHECKOUT
from cfdist.distributed.guard import end_guard
from cfdist.distributed.session import (
    close_shared_session,
    share_sessions,
    shares_sessions,
)
from cfdist.distributed.starting import prepare_environment
from cfdist.monitoring import terminal
from cfdist.report.screen import console

# Ray's connection, the environment and the screen are the process's: one run at a time.
_lock = threading.Lock()


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Let the runs in the `with` block share one Ray session, whose start takes seconds."""
    with _processes():
        share_sessions()
        try:
            yield
        finally:
            close_shared_session()
            share_sessions(False)


@contextlib.contextmanager
def alone(show: bool) -> Iterator[None]:
    """Keep the caller's logging, signals, Hydra and Ray as they are; one run at a time.

    Args:
        show: Whether the run's screen is shown.
    """
    root, hydra = logging.getLogger(), GlobalHydra.instance()
    with _lock, contextlib.ExitStack() as until_end:
        if not shares_sessions():
            until_end.enter_context(_processes())
        until_end.callback(root.setLevel, root.level)
        until_end.callback(setattr, console, "quiet", console.quiet)
        if threading.current_thread() is threading.main_thread():
            # The watch over the cluster's head takes it.
            until_end.callback(signal.signal, signal.SIGUSR2, signal.getsignal(signal.SIGUSR2))
        # The caller may be a Hydra application itself.
        until_end.callback(lambda own: setattr(GlobalHydra.instance(), "hydra", own), hydra.hydra)
        hydra.clear()
        console.quiet = not show
        until_end.callback(setattr, terminal, "settings", terminal.settings)
        terminal.show(is_quiet=not show, is_verbose=False)
        yield


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Give the processes that runs start their environment, and end them at the end."""
    before = dict(os.environ)
    try:
        prepare_environment()
        if CHECKOUT is not None:  # the caller's sys.path may have it, its processes' not
            paths = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        # Now, so that the session does not say on stdout that it starts.
        from ray._private import worker

        printing = worker.print_to_stdstream  # a session replaces it
        try:
            yield
        finally:
            worker.print_to_stdstream = printing
    finally:
        end_guard()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def caller_has_ray() -> bool:
    """Whether the caller is connected to a Ray cluster; runs use it, and leave it running."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and not shares_sessions()

"""The reducer as an actor that survives its own death, and what watches over it.

Ray starts a dead reducer again and repeats the calls that its death has cut off. The new one knows
nothing; the driver opens it once more, and it goes on from its journal. Detections that had reached
the journal are dropped there when they come again.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from concurrent.futures import Future
from typing import Any, cast

import psutil
import pyarrow as pa

from cfdist.detections import arrow_without_pandas, as_table
from cfdist.distributed.actors import Actor
from cfdist.distributed.events import Events
from cfdist.distributed.reducer import Begun, Evaluation, Reducer
from cfdist.monitoring.monitor import AP

Ref = Any  # Ray's reference to an object

# How often the reducer is asked whether it is well, and when it must have answered, seconds. It
# answers in a thread of its own, so that a slow disk does not count.
_PERIOD_SECONDS = 2.0
_LIMIT_SECONDS = 30.0
_TIMES_AT_WORK = 10  # as long for one whose process works, on a host with too few cores

_MAX_RESTARTS = 3

_GROUP = "watch"  # the threads of the reducer that take no detections

log = logging.getLogger(__name__)


class ReducerActor(Reducer):
    """A reducer whose calls wait until it is open, as they must if Ray has started it again."""

    def __repr__(self) -> str:
        """Its name in Ray's lists of actors."""
        return "reducer"

    def __init__(self) -> None:
        arrow_without_pandas()
        self._opening: Future[None] = Future()
        self._is_asked = False

    def is_asked(self) -> bool:
        """Whether `open` has been called in this process."""
        return self._is_asked

    def open(self, *settings: Any) -> Begun:
        """See `Reducer.open`; what it raises, the calls that wait raise too."""
        self._is_asked = True
        if self._opening.done():  # for an earlier run of the sweep
            self._opening = Future()
        try:
            begun = super().open(*settings)
        except BaseException as error:
            self._opening.set_exception(error)
            raise
        self._opening.set_result(None)
        return begun

    def add(self, detections: pa.Table | bytes) -> AP | None:
        """See `Reducer.add`; takes `packed` detections as well."""
        self._opening.result()
        is_packed = isinstance(detections, bytes)
        return super().add(as_table(detections) if is_packed else detections)

    def finish(self) -> Evaluation:
        """See `Reducer.finish`."""
        self._opening.result()
        return super().finish()


def reducer_options(calls: int) -> dict[str, Any]:
    """Ray's options of a reducer that takes so many calls at once: it lies on the driver's host."""
    import ray

    return {
        "num_cpus": 0,
        "max_concurrency": calls,
        "enable_task_events": False,
        "concurrency_groups": {_GROUP: 2},
        "max_restarts": _MAX_RESTARTS,
        "max_task_retries": -1,
        "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    }


class ReducerWatch:
    """Opens a reducer, and again after each of its deaths, in a `with` block.

    A reducer that does not answer is killed.
    """

    def __init__(self, reducer: Actor, settings: tuple[Any, ...], events: Events) -> None:
        """Open the reducer with the arguments of `Reducer.open`; its deaths become events."""
        self._reducer = reducer
        self._settings = settings
        self._events = events
        self._ended = threading.Event()
        self._opening = self._open()

    def __enter__(self) -> ReducerWatch:
        """Begin to watch; a daemon thread does it."""
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Watch no more."""
        self._ended.set()

    def opened(self) -> Begun:
        """What `Reducer.open` returned."""
        import ray

        return cast(Begun, ray.get(self._opening))

    def _open(self) -> Ref:
        return self._reducer.open.options(concurrency_group=_GROUP).remote(*self._settings)

    def _watch(self) -> None:
        import ray

        is_said = False
        while not self._ended.wait(_PERIOD_SECONDS):
            try:
                if not self._look():
                    return
            except ray.exceptions.RayActorError:
                return  # dead for good: those who wait for it learn of it
            except Exception as error:  # such as of a head that is away for a while
                if not is_said and not self._ended.is_set():
                    log.warning("the reducer's watch goes on after an error", exc_info=error)
                    is_said = True

    def _look(self) -> bool:
        """Ask the reducer whether it has to be opened again; false if the watch has ended."""
        import ray

        # A process that is not open yet may be asked before it is told to open.
        was_open = _has_ended(self._opening)
        asked = self._reducer.is_asked.options(concurrency_group=_GROUP).remote()
        if not self._is_answered(asked):
            return False
        if was_open and not ray.get(asked):
            self._opening = self._open()
            self._events.note(
                "reducer_restarted",
                "the reducer was lost, started again, and went on from its journal",
                host=socket.gethostname(),
            )
        return True

    def _is_answered(self, ref: Ref) -> bool:
        """Wait for an answer, and kill a reducer that owes one; false if the watch ends before."""
        import ray

        since = begun = time.monotonic()
        worked = _worked(self._reducer)
        while not _has_ended(ref):
            if self._ended.wait(0.2):
                return False
            if time.monotonic() - since <= _LIMIT_SECONDS:
                continue
            since, before, worked = time.monotonic(), worked, _worked(self._reducer)
            # One that works has too few cores, rather; it gets more time, not all the time.
            is_at_work = worked > before and since - begun < _TIMES_AT_WORK * _LIMIT_SECONDS
            if _is_there(self._reducer) and not is_at_work:
                log.warning("the reducer has not answered for %.0f s; killed", since - begun)
                ray.kill(self._reducer, no_restart=False)
                begun = since
        return True


def _has_ended(ref: Ref) -> bool:
    import ray

    return bool(ray.wait([ref], timeout=0)[0])


def _worked(actor: Actor) -> float:
    """The processor time of an actor on this host, seconds."""
    from ray._private.state import actors

    try:
        times = psutil.Process(actors(actor._actor_id.hex()).get("Pid") or 0).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _is_there(actor: Actor) -> bool:
    """Whether an actor's process is there, and not about to start."""
    from ray._private.state import actors

    return bool(actors(actor._actor_id.hex()).get("State") == "ALIVE")

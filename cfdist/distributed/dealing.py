"""Dealing work out to the devices of a pool, and taking in what becomes of it."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, cast

from cfdist.detections import Detections, packed, to_arrow
from cfdist.distributed.actors import Actor
from cfdist.distributed.device_actor import Answer, Result
from cfdist.distributed.events import What
from cfdist.distributed.failures import is_death, is_lost_block, user_error
from cfdist.distributed.pool import WATCH_SECONDS, DevicePool, Ref
from cfdist.distributed.retries import Row
from cfdist.distributed.scheduler import Scheduler, chunk_for_rate
from cfdist.distributed.work import Slice, Work
from cfdist.errors import UserError
from cfdist.monitoring.monitor import AP
from cfdist.preprocess import UNREADABLE

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.02  # how often the driver looks for new blocks while none is there


def deal_out(
    pool: DevicePool[Result],
    work: Work,
    keys: Sequence[str],
    on_done: Callable[[str, Result], None],
) -> Exception | None:
    """Hand all work out, each device as fast as it asks, and again what a device failed with.

    A device gets its next chunk when it finishes one. (Ray's `streaming_split` deals rows out
    evenly ahead of time, so that a run waits for its slowest device.)

    Args:
        pool: The devices.
        work: What there is to do.
        keys: Those of the work items, in the order of the work's rows.
        on_done: Called with the device's name and what its `process` returned for a chunk.

    Returns:
        Why rows are left, if a block was lost; `retries.given_up` has the pictures that failed.

    Raises:
        UserError: a device refuses its work, or a block cannot be made; the rest of the work
            would end in the same way.
        StoppedError: no device is left, or a picture failed with on_error=fail.
    """
    return Round(pool, work, keys, on_done).run()


@dataclass(frozen=True)
class _Handed:
    """A chunk that a device works on, or whose detections are on their way to the disk.

    Attributes:
        rows: The chunk's, as they are handed out again if the device fails.
        slices: The same rows as the device gets them.
        fresh: How many of them were not tried before.
        is_alone: The device gets nothing else meanwhile.
        since: When the device got it, on the pool's clock.
        batches: What the device held then, this chunk included.
        table: The detections, where there is a reducer.
    """

    name: str
    actor: Actor
    rows: Sequence[Row]
    slices: Sequence[Slice]
    fresh: int
    is_alone: bool
    since: float
    batches: int
    table: Ref

    @property
    def keys(self) -> set[str]:
        """Those of the rows."""
        return {row.key for row in self.rows}


class Round(Generic[Result]):
    """One round of a pool over some work; `deal_out` says what it does."""

    def __init__(
        self,
        pool: DevicePool[Result],
        work: Work,
        keys: Sequence[str],
        on_done: Callable[[str, Result], None],
    ) -> None:
        self._pool = pool
        self._work = work
        self._keys = iter(keys)
        self._on_done = on_done
        self._size = pool.least
        self._scheduler = Scheduler(work, pool.names, pool.plan.streams, pool.batch)
        self._running: dict[Ref, _Handed] = {}
        self._adding: dict[Ref, tuple[_Handed, Result]] = {}  # on their way to the disk
        self._lost: Exception | None = None
        self._started = time.perf_counter()
        self._finished = 0
        self._next_look = 0.0  # for devices that are late, on the pool's clock

    def run(self) -> Exception | None:
        """See `deal_out`."""
        import ray

        pool = self._pool
        self._fill()
        while self._running or self._adding or self._scheduler.left or pool.retries.is_waiting:
            pool.refuse_without_devices()
            timeout = _POLL_SECONDS if self._work.is_waiting else WATCH_SECONDS
            refs = [*self._running, *self._adding, *pool.opening]
            ended, _ = ray.wait(refs, num_returns=1, timeout=timeout)
            pool.watch(ended)
            for name in pool.aside:
                self._scheduler.leave_out(name)
            for ref in ended:
                if ref in self._adding:
                    self._take_in_added(ref)
                elif ref in self._running:
                    self._take_in(ref)
            self._end_late()
            self._fill()
            if pool.monitor.is_depth_due():
                chunks = Counter(one.name for one in self._running.values())
                lag = sum(len(one.rows) for one, _ in self._adding.values())
                pool.monitor.note_depth(chunks, lag)
        pool.monitor.note_depth({}, 0)
        return self._lost

    def _take_in(self, ref: Ref) -> None:
        """Note a chunk that a device has ended."""
        import ray

        handed = self._running.pop(ref)
        pool = self._pool
        try:
            answer = cast(Answer[Result], ray.get(ref))
        except ray.exceptions.RayError as error:
            self._take_in_failure(handed, error)
            return
        result = answer.result
        pool.monitor.note_usage(handed.name, answer.usage)
        pool.limits.note(handed.name, handed.batches, pool.clock.now - handed.since)
        if getattr(result, "doubtful", ()):
            result = self._judge_unread(handed, result)
        doubtful = dict(getattr(result, "doubtful", ()))
        tried = {*getattr(result, "keys", handed.keys)}
        accused = pool.retries.finish(handed.name, tried - doubtful.keys())
        self._doubt(handed, doubtful)
        for name in accused & pool.actors.keys():
            wrong = ValueError("it gave outputs that hold NaN or infinite values")
            self._replace(name, pool.actors[name], "device_failed", wrong, ())
        pool.refuse_failures(getattr(result, "failures", ()))
        if pool.reducer is None:
            self._finish(handed, result)
            return
        add = pool.reducer.add.options(name="journal")
        self._adding[add.remote(handed.table)] = (handed, result)

    def _judge_unread(self, handed: _Handed, report: Any) -> Any:
        """Let others read what this process can read, and blame a device that could not.

        Other pictures have failed.

        Args:
            handed: The chunk.
            report: A `ChunkReport`, or what has its `doubtful` and `judged`.

        Returns:
            The report without the pictures that have to be tried on another device, if any.
        """
        pool = self._pool
        unread = {key: why for key, why in report.doubtful if why.startswith(UNREADABLE)}
        if not unread:
            return report
        import ray

        doubtful = tuple(one for one in report.doubtful if one[0] not in unread)
        found = {key: pool.find_readable(key) for key in unread}
        if self._work.read_here:  # what was read here comes from here again
            found = {}
        items = {key: item for key, item in found.items() if item is not None}
        failed = tuple((key, why) for key, why in unread.items() if key not in items)
        pool.refuse_failures(failed)
        if failed and pool.reducer is not None:
            lost = to_arrow([Detections(k, error=w) for k, w in failed])
            ray.get(pool.reducer.add.remote(packed(lost)))
        if items:
            is_to_blame = self._work.is_read_by_device(handed.slices)
            self._work.read_again(items.values(), handed.slices)
            pool.retries.put_back(Row(key, Slice((one,), 0, 1)) for key, one in items.items())
            if is_to_blame:
                key = next(iter(items))
                wrong = ValueError(f"cannot read {key}, which the driver can ({unread[key]})")
                self._replace(handed.name, handed.actor, "device_failed", wrong, ())
        return report.judged(failed, doubtful)

    def _doubt(self, handed: _Handed, doubtful: dict[str, str]) -> None:
        """Try pictures again whose outputs were not finite."""
        pool = self._pool
        for row in handed.rows:
            if row.key in doubtful:
                pool.retries.doubt(handed.name, row, doubtful[row.key])
        pool.note_given_up()
        # Nobody else can say whether it is the picture or the device: that is started again, once.
        is_only_one = pool.actors.keys() == {handed.name} and not pool.opening
        if doubtful and is_only_one and not pool.was_doubted:
            pool.was_doubted = True
            wrong = next(iter(doubtful.values()))
            pool.note("device_failed", handed.name, f"{wrong}; it was started again")
            pool.retries.put_back(self._take_back(handed.actor))
            pool.restart(handed.name, handed.actor)

    def _take_in_added(self, ref: Ref) -> None:
        """Note a chunk whose detections are on the disk."""
        import ray

        handed, result = self._adding.pop(ref)
        try:
            self._pool.monitor.note_ap(cast(AP | None, ray.get(ref)))
        except ray.exceptions.RayError as error:
            if not is_lost_block(error):
                raise user_error(error) from None
            # The detections were lost with the device's node, and nobody else has them.
            log.error("the detections of %s were lost", handed.name, exc_info=error)
            self._give_back(handed)
            # The others are tried again already, and may be done since.
            keys = {*getattr(result, "keys", handed.keys)}
            self._pool.retries.put_back(row for row in handed.rows if row.key in keys)
            return
        self._finish(handed, result)

    def _finish(self, handed: _Handed, result: Result) -> None:
        self._give_back(handed, is_finished=True)
        self._on_done(handed.name, result)
        self._finished += len(handed.rows)
        seconds = max(time.perf_counter() - self._started, 1e-3)
        rate = self._finished / seconds / self._pool.plan.count
        self._size = chunk_for_rate(self._pool.least, rate)

    def _take_in_failure(self, handed: _Handed, error: Exception) -> None:
        problem = user_error(error)
        if isinstance(problem, UserError) and not is_death(error):
            raise problem
        self._give_back(handed, is_block_lost=is_lost_block(error))
        if is_lost_block(error):
            log.error("a block was lost", exc_info=error)
            self._lost = problem
        elif is_death(error):
            rows = [*handed.rows, *self._take_back(handed.actor)]
            self._replace(handed.name, handed.actor, "device_lost", error, rows)
        else:
            self._replace(handed.name, handed.actor, "device_failed", error, handed.rows)

    def _end_late(self) -> None:
        """End the devices that take too long for what they hold."""
        import ray

        pool = self._pool
        if pool.clock.now < self._next_look:
            return
        self._next_look = pool.clock.now + WATCH_SECONDS
        for ref, handed in [*self._running.items()]:
            limit = pool.limits.limit(handed.name, handed.batches)
            seconds = pool.clock.now - handed.since
            if seconds <= limit or ref not in self._running or ray.wait([ref], timeout=0)[0]:
                continue
            late = TimeoutError(
                f"has not ended {len(handed.rows)} pictures within {seconds:.0f} s (device.timeout)"
            )
            # In a process that has stopped, whatever it holds may be the cause.
            rows = self._take_back(handed.actor)
            self._replace(handed.name, handed.actor, "device_timeout", late, rows)

    def _replace(
        self, name: str, actor: Actor, what: What, error: Exception, rows: Collection[Row]
    ) -> None:
        """`DevicePool.replace`; what the device has in hand beside these rows is tried again."""
        self._pool.retries.put_back(self._take_back(actor))
        self._pool.replace(name, actor, what, error, rows)
        if name in self._pool.aside:
            self._scheduler.leave_out(name)

    def _give_back(
        self, handed: _Handed, is_finished: bool = False, is_block_lost: bool = False
    ) -> None:
        """Note that a device has a chunk no longer, finished or not."""
        self._scheduler.give_back(handed.name, handed.fresh, is_finished)
        self._work.settle([*handed.slices], is_finished, is_block_lost)

    def _take_back(self, actor: Actor) -> list[Row]:
        """The rows of all chunks that an actor works on; they count as not handed out."""
        rows: list[Row] = []
        for ref in [ref for ref, handed in self._running.items() if handed.actor is actor]:
            handed = self._running.pop(ref)
            self._give_back(handed)
            rows += handed.rows
        return rows

    def _fill(self) -> None:
        """Hand out chunks, one to each device in turn; wait for work if nothing else is left."""
        pool = self._pool
        if not (self._running or self._adding or pool.opening or pool.retries.is_waiting):
            self._work.wait()
        hungry = list(pool.actors)
        for name in hungry:
            self._scheduler.add(name)
        held: dict[int, list[_Handed]] = defaultdict(list)  # by the actors' Python ids
        for one in (*self._running.values(), *(one for one, _ in self._adding.values())):
            held[id(one.actor)].append(one)
        while hungry:
            hungry = [name for name in hungry if self._hand_out(name, held[id(pool.actors[name])])]

    def _hand_out(self, name: str, held: list[_Handed]) -> bool:
        """Give a device a chunk beside those it holds, if it may hold one more and there is one."""
        pool, actor = self._pool, self._pool.actors[name]
        if len(held) >= pool.plan.max_in_flight or any(one.is_alone for one in held):
            return False
        slices, rows, fresh = self._next(name, is_idle=not held)
        if rows:
            call = actor.letterbox.options(name="letterbox")
            letterbox = partial(call.remote, threads=pool.plan.readers)
            slices = self._work.letterbox(slices, letterbox)
            batches = sum(-(-len(one.rows) // pool.batch) for one in held)
            call = actor.process.options(num_returns=2, name="infer")
            ref, table = call.remote(
                [replace(one, block=None) for one in slices], *(one.block for one in slices)
            )
            self._running[ref] = _Handed(
                *(name, actor, rows, slices, fresh, pool.retries.is_alone(rows), pool.clock.now),
                batches + -(-len(rows) // pool.batch),
                table,
            )
            held.append(self._running[ref])
        return bool(rows)

    def _next(self, name: str, is_idle: bool) -> tuple[list[Slice], list[Row], int]:
        """The next chunk of a device: slices, their rows, and how many of these are new."""
        pool = self._pool
        devices = {*pool.actors, *(one.name for one in pool.opening.values())}
        rows = pool.retries.take_first(name, pool.batch, devices)
        if not rows and (slices := self._scheduler.next_chunk(name, self._size)):
            rows = [Row(next(self._keys), place) for one in slices for place in one.each()]
            return slices, rows, len(rows)
        rows = rows or pool.retries.take_last(name, pool.actors, pool.batch, is_idle)
        return [row.slice for row in rows], rows, 0

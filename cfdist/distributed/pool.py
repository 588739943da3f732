"""The device actors of a run, each given work as fast as it asks."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

import pyarrow as pa

from cfdist.detections import Detections, arrow_without_pandas, to_arrow
from cfdist.devices.base import (
    ChunkReport,
    Device,
    DeviceReport,
    MakeDevice,
    SteppingDevice,
    device_name,
)
from cfdist.devices.reader import Size
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, Place, settle
from cfdist.distributed.actors import (
    Actor,
    end_idle_actors,
    kill_actors,
    leave_actors,
    take_actor,
)
from cfdist.distributed.events import Event, Events, What
from cfdist.distributed.failures import is_death, is_lost_block, user_error, words_of
from cfdist.distributed.head import is_silent
from cfdist.distributed.limits import Clock, TimeLimits
from cfdist.distributed.nodes import (
    UNIT,
    Node,
    cluster_nodes,
    devices_on_one,
    free_nodes,
    named,
    other_jobs,
)
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.retries import Retries, Row
from cfdist.distributed.scheduler import Scheduler, chunk_for_rate
from cfdist.distributed.work import Slice, Work, letterbox_items, sources_of
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.machine import reset_peak_memory
from cfdist.monitoring.monitor import AP, DeviceUsage, Monitor
from cfdist.monitoring.terminal import say
from cfdist.preprocess import UNREADABLE
from cfdist.widerface.manifest import WorkItem

log = logging.getLogger(__name__)

# How often the driver looks for new blocks while none is there, and for devices that are late,
# seconds.
_POLL_SECONDS = 0.02
_WATCH_SECONDS = 0.5

# Once a device is ready, the others get this many times as long, or so many seconds, before the
# run begins without them; they join it when they are ready.
_WAIT_TIMES, _WAIT_SECONDS = 3, 10.0

# What a device may take to say what it has done, when the run is over.
_CLOSE_SECONDS = 20.0

_USAGE_SECONDS = 0.5  # how often a device says what it has done, at most

_NODES_SECONDS = 3.0  # how often the cluster's nodes are looked at
_SAID_AFTER = 10.0  # seconds until a person learns that a device waits for a place

REDUCER = "reducer"  # the name of the reducer's actor

Ref = Any  # Ray's reference to an object
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """What a device actor returns: the result of a call, and now and then what it has done.

    Attributes:
        at: When, seconds since the epoch by the clock of the device's machine.
    """

    result: Result
    usage: DeviceUsage | None = None
    at: float = field(default_factory=time.time)


class DeviceActor:
    """Hosts a device in a process of its own; in a sweep, one after the other."""

    def __init__(self, name: str = "device:0", kind: str = "cpu") -> None:
        """Take a name that says what it is, in Ray's lists of actors."""
        arrow_without_pandas()
        self._text = actor_text(name, kind)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Such as "device NPU 0 on host"."""
        return self._text

    def settle(self, kind: str) -> Place:
        """Take the accelerator that Ray gave; returns where the device is.

        Raises:
            UserError: Ray gave it no accelerator of its own.
        """
        self._place = settle(kind)
        return self._place

    def warm_up(self, device: Device, place: Place, is_reduced: bool) -> Place:
        """Load a device where it has settled, see `Device.warm_up`.

        If a reducer gathers its detections, each chunk gives a report and their table.

        Returns:
            `place`.

        Raises:
            UserError: the device refuses the model.
        """
        reset_peak_memory()
        self._device = device
        self._told, self._told_at = DeviceReport(), 0.0
        self._is_reduced = is_reduced
        device.warm_up()
        to_arrow([])  # imports pyarrow before the first chunk
        return place

    def process(
        self, slices: Sequence[Slice], *blocks: pa.Table
    ) -> tuple[Answer[Any], pa.Table | None]:
        """`Device.process` for rows of blocks; a slice and its block have the same position.

        Returns:
            The device's result, or a `ChunkReport` and the detections for the reducer.
        """
        found = self._device.process(sources_of(slices, blocks))
        if not self._is_reduced:
            return Answer(found, self._usage()), None
        sound = [one for one in found if not one.is_doubtful]
        report = ChunkReport(
            tuple(one.id for one in sound if one.error is None),
            tuple((one.id, one.error) for one in sound if one.error is not None),
            tuple((one.id, one.error) for one in found if one.is_doubtful),
        )
        return Answer(report, self._usage()), to_arrow(sound)

    def _usage(self, is_last: bool = False) -> DeviceUsage | None:
        """What the device has done since it last said so; `None`: it has just said it."""
        with self._lock:
            now = time.monotonic()
            if now - self._told_at < _USAGE_SECONDS and not is_last:
                return None
            before, report = self._told, replace(self._device.report())
            report.batch_ms = [*report.batch_ms]
            self._told, self._told_at = report, now
        return DeviceUsage(
            report.busy_seconds - before.busy_seconds,
            report.starved_seconds - before.starved_seconds,
            tuple(report.batch_ms[len(before.batch_ms) :]),
        )

    def letterbox(self, items: Sequence[WorkItem], size: Size, threads: int) -> pa.Table:
        """A block of the items' letterboxed pictures, see `letterbox`."""
        return letterbox_items(items, size, threads)

    def process_directly(self, chunk: Any) -> Any:
        """`Device.process` for a chunk that is not rows of blocks."""
        return self._device.process(chunk)

    def steps(self) -> int:
        """How much a `SteppingDevice` has done so far."""
        return cast(SteppingDevice, self._device).steps

    def close(self) -> Answer[DeviceReport]:
        """Give the device back; returns what it has done."""
        report, usage = self._device.report(), self._usage(is_last=True)
        self._device.close()
        del self._device
        return Answer(replace(report, host=self._place.host, chip=self._place.chip), usage)


def by_our_clock(answer: Answer[DeviceReport]) -> DeviceReport:
    """A report that has just arrived; what another machine did, by this one's clock.

    That is as exact as the answer's way was short, milliseconds.
    """
    report = answer.result
    if report.host != socket.gethostname():
        activity = replace(report.activity)
        activity.started += time.time() - answer.at
        report = replace(report, activity=activity)
    return report


def actor_text(name: str, kind: str) -> str:
    """What a device is, in this process: "device NPU 0 on host"; a CPU has the device's number."""
    import ray

    resource = ACCELERATOR_RESOURCE[kind]
    ids = ray.get_runtime_context().get_accelerator_ids().get(resource or "", [])
    number = ids[0] if ids else name.partition(":")[2]
    return f"device {resource or 'CPU'} {number} on {socket.gethostname()}"


@dataclass
class _Opening:
    """A device that loads its model.

    Attributes:
        placed: The call that says where it is; what comes before is not the device's doing.
        begun: When Ray was asked for a place, on the pool's clock.
        since: When it was placed, on the pool's clock.
    """

    name: str
    actor: Actor
    placed: Ref
    begun: float
    since: float | None = None


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


class DevicePool(Generic[Result]):
    """The device actors of a run; at the end of a `with` block they end, whatever they are doing.

    A device that fails is started again; one that is at fault by the rules of `Retries` is set
    aside, and the others do its work.

    Attributes:
        least: Pictures that a device should be given at once.
        actors: Device name -> its actor, of the devices that are ready.
        opening: Call that loads a device -> the device.
        aside: Names of the devices that were set aside.
        reports: Device name -> its last report.
        events: What happened to the devices and pictures.
        words: Device name -> what it said when it last failed or refused the model.
        retries: What is tried again.
        clock: For the time limits.
        limits: The time limits.
        was_doubted: The only device was started again for outputs that were not finite.
        monitor: Learns how the run goes on.
        find_readable: The work item of a key, if this process can read its picture; raises a
            `StoppedError` if all that is beside the picture is gone, too.
    """

    def __init__(
        self,
        plan: DevicePlan,
        make_device: MakeDevice,
        batch: int,
        group: int = 1,
        reducer: Actor | None = None,
    ) -> None:
        """Plan the actors; `start` starts them.

        A device should be given `group` batches at once. If there is a reducer actor, it gets the
        devices' detections.
        """
        self.plan = plan
        self._make_device = make_device
        self.reducer = reducer
        self.batch = batch
        self.least = batch * group
        self.actors: dict[str, Actor] = {}
        self.opening: dict[Ref, _Opening] = {}
        self.aside: set[str] = set()
        self.reports: dict[str, DeviceReport] = {}
        self.events = Events()
        self.retries = Retries()
        self.clock = Clock()
        self.limits = TimeLimits(plan.timeout, plan.first_seconds)
        self._places: dict[str, Place] = {}
        self._starts: Counter[str] = Counter()
        self.was_doubted = False
        self._refusals: dict[str, UserError] = {}
        self._failed: dict[str, Event] = {}  # key -> of the pictures that are given up
        self.words: dict[str, str] = {}
        self._last_words: Exception = RuntimeError("no device was started")
        self.monitor = Monitor()
        self.find_readable: Callable[[str], WorkItem | None] = lambda key: None
        self._nodes: dict[str, Node] = {}
        self._first_nodes: set[str] = set()
        self._looked = -_NODES_SECONDS
        self._joining: set[str] = set()
        self._aside_at: dict[str, Place] = {}  # of the devices that were set aside
        self._says_it_waits = False

    def __enter__(self) -> DevicePool[Result]:
        """The pool; its actors are not started yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the actors, whatever they are doing."""
        kill_actors({one.name: one.actor for one in self.opening.values()} | self.actors)
        self.actors, self.opening = {}, {}

    @property
    def names(self) -> list[str]:
        """The devices that were not set aside."""
        names = map(device_name, range(self.plan.count))
        return [name for name in names if name not in self.aside]

    def begin(self) -> None:
        """Start the actors that are not there, and let each load its model."""
        end_idle_actors({*self.names, REDUCER})
        there = {*self.actors, *(one.name for one in self.opening.values())}
        for number in range(self.plan.count):
            name = device_name(number)
            if name in there or name in self.aside or name in self._refusals:
                continue
            settings = replace(self.plan.settings(number), starts=self._starts[name])
            self._starts[name] += 1
            device = self._make_device(settings)
            actor = take_actor(name, DeviceActor, self.plan.actor_options, name, self.plan.kind)
            placed = actor.settle.options(name="find the device").remote(self.plan.kind)
            load = actor.warm_up.options(name="load the model")
            loaded = load.remote(device, placed, self.reducer is not None)
            self.opening[loaded] = _Opening(name, actor, placed, self.clock.now)

    def start(self, waits_for_all: bool = False) -> None:
        """Start the actors that are not there; wait until they have run their model once.

        A device that fails meanwhile is started again. One that takes far longer than the others
        joins them later, unless all are waited for.

        Raises:
            UserError: all devices refuse the model, or two have one accelerator.
            StoppedError: no device gets ready.
        """
        import ray

        began = time.monotonic()
        ready_at: float | None = None
        self.begin()
        while self.opening:
            self.watch(ray.wait([*self.opening], num_returns=1, timeout=_WATCH_SECONDS)[0])
            now = time.monotonic()
            if self.actors and ready_at is None:
                ready_at = now
            if waits_for_all or ready_at is None:
                continue
            if now > ready_at + max(_WAIT_SECONDS, _WAIT_TIMES * (ready_at - began)):
                break
        self.refuse_without_devices()

    def watch(self, ended: Iterable[Ref]) -> None:
        """Take in the devices that have ended loading, and end those that take too long."""
        import ray

        self.clock.tick()
        for ref in [ref for ref in ended if ref in self.opening]:
            one = self.opening.pop(ref)
            try:
                place = cast(Place, ray.get(ref))
            except ray.exceptions.RayError as error:
                self._take_in_refusal(one, error)
                continue
            self._note_place(one.name, place)
            self.monitor.add_device(one.name, place.host)
            self.actors[one.name] = one.actor
            if one.name in self._joining:
                self._joining.remove(one.name)
                self.note("device_added", one.name, "joined the run")
            self.reports.setdefault(one.name, DeviceReport(host=place.host, chip=place.chip))
        placed = [one.placed for one in self.opening.values() if one.since is None]
        if placed:
            placed, _ = ray.wait(placed, num_returns=len(placed), timeout=0)
        for ref, one in [*self.opening.items()]:
            if one.placed in placed:
                one.since = self.clock.now
            seconds = 0.0 if one.since is None else self.clock.now - one.since
            if seconds > self.limits.opening and not ray.wait([ref], timeout=0)[0]:
                del self.opening[ref]
                self._find_place(one)
                late = TimeoutError(f"has not loaded its model within {seconds:.0f} s")
                self.replace(one.name, one.actor, "device_timeout", late)
        if self.clock.now - self._looked >= _NODES_SECONDS and not is_silent():
            self._looked = self.clock.now
            self._look_at_nodes()

    def _look_at_nodes(self) -> None:
        """Note lost nodes, use new ones, and give up devices that wait for room in vain."""
        before = self._nodes
        self._nodes = {
            node.id: node
            for node in cluster_nodes(self.plan.kind)
            if node.id not in self.plan.without
        }
        for id in before.keys() - self._nodes.keys():
            host = before[id].host
            self.events.note("node_lost", f"{host}: the cluster lost this node", host=host)
        room = sum(self.plan.room(node) for node in self._nodes.values())
        self._first_nodes = self._first_nodes or {*self._nodes}
        count = room + len(self.aside) - self._spoilt_room()
        if self.plan.grows and self._nodes.keys() - self._first_nodes and count > self.plan.count:
            known = {*self.names}
            self.plan = replace(self.plan, count=count)
            self._joining |= {*self.names} - known
            self.begin()
        waiting = {ref: one for ref, one in self.opening.items() if one.since is None}
        for ref, one in waiting.items():
            seconds = self.clock.now - one.begun
            if seconds > self.plan.wait_s and room < len(self.actors) + len(self.opening):
                del self.opening[ref]
                kill_actors({one.name: one.actor})
                text = f"{one.name}: no node of the cluster has room for it"
                self._last_words = StoppedError(text, ExitCode.INTERNAL)
                self._set_aside(one.name, "no node of the cluster has room for it any more")
            elif seconds > _SAID_AFTER and not self._says_it_waits:
                self._say_what_is_waited_for(len(waiting))

    def _spoilt_room(self) -> int:
        """How many places, on nodes that are there, have devices that were set aside.

        They get no others: a broken chip would have one after the other, to the run's end.
        """
        hosts = {node.host for node in self._nodes.values()}
        spoilt = [place for place in self._aside_at.values() if place.host in hosts]
        most = devices_on_one(self.plan.part)
        return sum(
            number if place.chip is None else min(number, most)
            for place, number in Counter(spoilt).items()
        )

    def _say_what_is_waited_for(self, count: int) -> None:
        """Say once that devices wait for what other jobs of the cluster hold."""
        jobs, free = other_jobs(), free_nodes(self.plan.kind)
        if not jobs or any(self.plan.room(node) for node in free):
            return
        self._says_it_waits = True
        what = f"{self.plan.share / UNIT:g} CPU"
        if resource := ACCELERATOR_RESOURCE[self.plan.kind]:
            what += f" and {self.plan.part:g} {resource}"
        rest = "the others begin" if self.actors else "the run begins when they are free"
        line = (
            f"{count} of {self.plan.count} devices wait for {what} of one node each, which "
            f"{jobs} other job{'s' * (jobs > 1)} of the cluster may hold (free: "
            f"{named(free, self.plan.kind)}); {rest}"
        )
        log.warning(line)
        say(line)

    def _take_in_refusal(self, one: _Opening, error: Exception) -> None:
        """Note a device that could not be opened; all that refuse the model end the run."""
        self._find_place(one)
        problem = user_error(error)
        if isinstance(problem, UserError) and not is_death(error) and not self.reports:
            self._refusals[one.name] = problem
            self.words[one.name] = str(problem)
            kill_actors({one.name: one.actor})
            self._last_words = problem
        else:
            what: What = "device_lost" if is_death(error) else "device_failed"
            self.replace(one.name, one.actor, what, error)

    def refuse_without_devices(self) -> None:
        """Raise what the last device said if none is left."""
        if self.opening or self.actors:
            for name, refusal in [*self._refusals.items()]:
                self._set_aside(name, str(refusal))
            self._refusals = {}
            return
        problem = user_error(self._last_words)
        if isinstance(problem, UserError):
            raise problem
        raise StoppedError(f"no device is left; the last one, {problem}", ExitCode.INTERNAL)

    def await_call(self, name: str, call: Ref) -> Any:
        """What a call to a `SteppingDevice` returns that nobody else can do.

        It may take any time while the device goes on.

        Raises:
            UserError: the device refuses it.
            StoppedError: the device failed, or has not done a step within the time limit.
        """
        import ray

        try:
            self._wait_while_it_goes_on(name, call)
            return ray.get(call)
        except ray.exceptions.RayError as error:
            problem = user_error(error)
            if isinstance(problem, UserError):
                raise problem from None
            log.error("%s failed", name, exc_info=error)
            text = f"{self.label(name)}: {words_of(error)}"
            raise StoppedError(text, ExitCode.INTERNAL) from None

    def _wait_while_it_goes_on(self, name: str, call: Ref) -> None:
        """Wait for a call; raise a `StoppedError` once its device has stood still too long."""
        import ray

        self.clock.tick()
        limit = self.limits.opening
        seen, since, asked = 0, self.clock.now, self.clock.now
        steps: Any
        answer: Ref = None
        while not ray.wait([call], timeout=min(_WATCH_SECONDS, limit / 4))[0]:
            self.clock.tick()
            now = self.clock.now
            if answer is not None and ray.wait([answer], timeout=0)[0]:
                steps = ray.get(answer)
                answer = None
                if steps != seen:
                    seen, since = steps, now
            # Seldom: each question takes a millisecond from what is measured.
            if answer is None and now - asked >= limit / 4:
                asked, answer = now, self.actors[name].steps.remote()
            if now - since > 1.5 * limit:  # an answer may be this late
                text = f"{self.label(name)}: no batch has ended for {limit:g} s (device.timeout)"
                raise StoppedError(text, ExitCode.INTERNAL)

    def replace(
        self,
        name: str,
        actor: Actor,
        what: What,
        error: Exception,
        rows: Collection[Row] = (),
    ) -> None:
        """End a device that has failed with some pictures in hand; start it again, if it may be.

        Args:
            name: The device's.
            actor: That of the device that failed, which may be replaced already.
            what: How the results name it.
            error: What it ran into.
            rows: What may have been the cause.
        """
        if self.actors.get(name, actor) is not actor:
            self.retries.put_back(rows)
            return
        log.error("%s failed", name, exc_info=error)
        words = words_of(error)
        self._last_words = (
            error
            if isinstance(user_error(error), UserError)
            else StoppedError(f"{self.label(name)}: {words}", ExitCode.INTERNAL)
        )
        self.note(what, name, words + ("; its work was handed out again" if rows else ""))
        self.words[name] = words
        self.retries.fail(name, rows, words)
        self.note_given_up()
        self.restart(name, actor)

    def restart(self, name: str, actor: Actor) -> None:
        """End a device's process, and start another, unless the device is at fault."""
        self.actors.pop(name, None)
        # The actor may only be out of reach, and two cannot have one name.
        kill_actors({name: actor})
        if self.retries.is_at_fault(name):
            self.retries.forget(name)
            self.note_given_up()
            self._set_aside(name, "it failed again")
        else:
            self.begin()
        self._places.pop(name, None)

    def note(self, what: What, name: str, text: str) -> None:
        """Add an event of a device, which its text names first."""
        place = self._places.get(name)
        host, chip = (place.host, place.chip) if place else (None, None)
        self.events.note(what, f"{self.label(name)}: {text}", name, host, chip)

    def note_given_up(self) -> None:
        """Keep one event for each picture that is given up; the first ends the run if it may.

        Raises:
            StoppedError: on_error=fail.
        """
        given_up = self.retries.given_up
        for key in self._failed.keys() - given_up.keys():
            self.events.take_back(self._failed.pop(key), "it is tried again")
        for key in [key for key in given_up if key not in self._failed]:
            self._failed[key] = self.events.note("picture_failed", f"{key}: {given_up[key]}")
            self.refuse_failures([(key, given_up[key])])

    def refuse_failures(self, failures: Sequence[tuple[str, str]]) -> None:
        """Raise a `StoppedError` that names the first picture that failed, with on_error=fail."""
        if failures and self.plan.fails_fast:
            key, reason = failures[0]
            raise StoppedError(f"{key}: {reason} (on_error=fail)", ExitCode.PICTURES_FAILED)

    def label(self, name: str) -> str:
        """A device with its host and its chip there, for messages."""
        place = self._places.get(name)
        if place is None:
            return name
        chip = f", {ACCELERATOR_RESOURCE[self.plan.kind]} {place.chip}" if place.chip else ""
        return f"{name} ({place.host}{chip})"

    def _set_aside(self, name: str, why: str) -> None:
        self.aside.add(name)
        if place := self._places.get(name):
            self._aside_at[name] = place
        self.note("device_set_aside", name, f"set aside: {why}; the other devices do its work")

    def _find_place(self, one: _Opening) -> None:
        """Note where a device is that did not open, if its process came that far."""
        import ray

        if ray.wait([one.placed], timeout=0)[0]:
            try:
                self._places[one.name] = cast(Place, ray.get(one.placed))
            except ray.exceptions.RayError:
                return

    def _note_place(self, name: str, place: Place) -> None:
        """Note where a device is; raise a `UserError` if too many have the same accelerator."""
        without = {name, *self.aside, *self._refusals}  # the others may have their accelerators
        same = [
            other for other, its in self._places.items() if its == place if other not in without
        ]
        if place.chip is not None and len(same) >= devices_on_one(self.plan.part):
            what = f"{ACCELERATOR_RESOURCE[self.plan.kind]} {place.chip} of {place.host}"
            raise UserError(
                f"{', '.join(same)} and {name} have the same accelerator, {what}; name each one "
                "once, and on one node of the cluster only"
            )
        self._places[name] = place

    def run_round(
        self, work: Work, keys: Sequence[str], on_done: Callable[[str, Result], None]
    ) -> Exception | None:
        """Hand all work out, each device as fast as it asks, and again what a device failed with.

        A device gets its next chunk when it finishes one. (Ray's `streaming_split` deals rows out
        evenly ahead of time, so that a run waits for its slowest device.)

        Args:
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
        return _Round(self, work, keys, on_done).run()

    def close(self) -> None:
        """Collect the devices' reports; a sweep's next run gets the processes, else they end."""
        import ray

        for one in [one for one in self.opening.values() if one.name not in self.reports]:
            self._find_place(one)
            self.note("device_failed", one.name, "was not ready when the run ended")
        closed = {}
        for name, actor in self.actors.items():
            try:
                answer = ray.get(actor.close.remote(), timeout=_CLOSE_SECONDS)
                self.reports[name] = by_our_clock(answer)
                self.monitor.note_usage(name, answer.usage)
                closed[name] = actor
            except ray.exceptions.RayError as error:
                self.note("device_failed", name, f"gave no report: {words_of(error)}")
        leave_actors(closed, DeviceActor, self.plan.actor_options)
        self.actors = {name: self.actors[name] for name in self.actors.keys() - closed.keys()}
        self.__exit__()


class _Round(Generic[Result]):
    """One round of a pool over some work."""

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
        """See `DevicePool.run_round`."""
        import ray

        pool = self._pool
        self._fill()
        while self._running or self._adding or self._scheduler.left or pool.retries.is_waiting:
            pool.refuse_without_devices()
            timeout = _POLL_SECONDS if self._work.is_waiting else _WATCH_SECONDS
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
            ray.get(pool.reducer.add.remote(to_arrow([Detections(k, error=w) for k, w in failed])))
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
        self._next_look = pool.clock.now + _WATCH_SECONDS
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
            places = [
                replace(one, start=row, stop=row + 1)
                for one in slices
                for row in range(one.start, one.stop)
            ]
            rows = [Row(next(self._keys), place) for place in places]
            return slices, rows, len(rows)
        rows = rows or pool.retries.take_last(name, pool.actors, pool.batch, is_idle)
        return [row.slice for row in rows], rows, 0

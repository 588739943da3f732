"""The device actors of a run: starting, watching and replacing them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, cast

from cfdist.devices.base import (
    DeviceReport,
    MakeDevice,
    device_name,
)
from cfdist.distributed.accelerators import ACCELERATOR_RESOURCE, Place
from cfdist.distributed.actors import (
    Actor,
    end_idle_actors,
    kill_actors,
    leave_actors,
    take_actor,
)
from cfdist.distributed.device_actor import DeviceActor, Result, by_our_clock
from cfdist.distributed.events import Event, Events, What
from cfdist.distributed.failures import is_death, user_error, words_of
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
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.monitoring.monitor import Monitor
from cfdist.monitoring.terminal import say
from cfdist.widerface.manifest import WorkItem

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5  # how often the driver looks for devices that are late

# Once a device is ready, the others get this many times as long, or so many seconds, before the
# run begins without them; they join it when they are ready.
_WAIT_TIMES, _WAIT_SECONDS = 3, 10.0

# What a device may take to say what it has done, when the run is over.
_CLOSE_SECONDS = 20.0

_NODES_SECONDS = 3.0  # how often the cluster's nodes are looked at
_SAID_AFTER = 10.0  # seconds until a person learns that a device waits for a place

REDUCER = "reducer"  # the name of the reducer's actor

Ref = Any  # Ray's reference to an object


@dataclass
class _Opening:
    """A device that loads its model.

    Attributes:
        placed: The call that says where it is; what comes before is not the device's doing.
        begun: When Ray was asked for a place, on the pool's clock.
        since: When it was placed, on the pool's clock.
        without: The plan's nodes without devices when Ray was asked.
    """

    name: str
    actor: Actor
    placed: Ref
    begun: float
    since: float | None = None
    without: tuple[str, ...] = ()


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
            `StoppedError` if the folders or stores of all pictures are gone.
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
            begun = self.clock.now
            without = self.plan.without
            self.opening[loaded] = _Opening(name, actor, placed, begun, without=without)

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
            self.watch(ray.wait([*self.opening], num_returns=1, timeout=WATCH_SECONDS)[0])
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
        before, there = self._nodes, {node.id: node for node in cluster_nodes(self.plan.kind)}
        self._choose_nodes(there)
        for id in before.keys() - there.keys():
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
        for ref in [ref for ref, one in waiting.items() if one.without != self.plan.without]:
            one = waiting.pop(ref)
            del self.opening[ref]
            kill_actors({one.name: one.actor})
            self.begin()  # among other nodes
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
        return sum(map(self._spoilt_on, self._nodes))

    def _spoilt_on(self, node: str) -> int:
        """`_spoilt_room` of one node."""
        spoilt = [place for place in self._aside_at.values() if place.node == node]
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
        while not ray.wait([call], timeout=min(WATCH_SECONDS, limit / 4))[0]:
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
            self._choose_nodes(self._nodes)
        self.note("device_set_aside", name, f"set aside: {why}; the other devices do its work")

    def _choose_nodes(self, there: Mapping[str, Node]) -> None:
        """Put no more devices on nodes of which all places are spoilt, while others go on.

        Such as one that does not see the pictures: a device that was lost elsewhere would fail
        there, too, and the room that other nodes have later would not be used. Where no other node
        is left, they are taken again.
        """
        rooms = {id: self.plan.room(node) for id, node in there.items()}
        spoilt = {id for id, room in rooms.items() if 0 < room <= self._spoilt_on(id)}
        without = {*self.plan.without}
        if {self._places[name].node for name in self.actors if name in self._places} - spoilt:
            without |= spoilt
        elif not any(room for id, room in rooms.items() if id not in spoilt | without):
            without.clear()
        self.plan = replace(self.plan, without=tuple(sorted(without)))
        self._nodes = {id: node for id, node in there.items() if id not in without}

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
            other
            for other, its in self._places.items()
            if its[:3] == place[:3] and other not in without
        ]
        if place.chip is not None and len(same) >= devices_on_one(self.plan.part):
            what = f"{ACCELERATOR_RESOURCE[self.plan.kind]} {place.chip} of {place.host}"
            raise UserError(
                f"{', '.join(same)} and {name} have the same accelerator, {what}; name each one "
                "once, and on one node of the cluster only"
            )
        self._places[name] = place

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

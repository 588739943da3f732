"""A pool of real Ray actors: devices that die, refuse, or never get ready."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cfdist.backends import simulated
from cfdist.detections import Detections, from_arrow
from cfdist.devices.activity import ActivityRecord
from cfdist.devices.base import ChunkReport, DeviceReport
from cfdist.distributed.accelerators import Place
from cfdist.distributed.nodes import Node
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.pool import Answer, DevicePool, _Handed, _Round, by_our_clock
from cfdist.distributed.retries import Row
from cfdist.distributed.work import Slice, Work, item_work
from cfdist.errors import StoppedError, UserError
from cfdist.widerface.manifest import WorkItem

pytestmark = pytest.mark.usefixtures("ray_session")


def items_of(count: int) -> list[WorkItem]:
    return [WorkItem(f"e/{i}", "", 0) for i in range(count)]


class DyingDevice:
    """A device whose process dies while it loads, a number of times; then it works."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder = folder
        self.deaths = deaths

    def warm_up(self) -> None:
        count = len(list(self.folder.iterdir()))
        if count < self.deaths:
            (self.folder / f"{os.getpid()}").touch()
            os._exit(1)

    def process(self, chunk):
        return [item.id for item in chunk]

    def report(self) -> DeviceReport:
        return DeviceReport()

    def close(self) -> None:
        pass


class RefusingDevice(DyingDevice):
    """A device that takes no chunk and notes each that it was given."""

    def process(self, chunk):
        (self.folder / chunk[0].id.replace("/", "_")).touch()
        raise UserError("model.batch=2: does not fit the device's memory")


@pytest.fixture(autouse=True)
def classes_by_value():
    """Ray's workers cannot import this module."""
    import sys

    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def pool_of(device: DyingDevice, count: int = 1, **limits) -> DevicePool:
    plan = replace(plan_devices("cpu", count, readers=1), **limits)
    return DevicePool(plan, lambda settings: device, 2)


def run(pool: DevicePool, count: int, on_done=lambda *_: None):
    items = items_of(count)
    return pool.run_round(item_work(items), [item.key for item in items], on_done)


def whats(pool: DevicePool) -> list[str]:
    return [event.what for event in pool.events]


def test_a_refused_chunk_ends_the_round(tmp_path):
    with pool_of(RefusingDevice(tmp_path, 0)) as pool:
        pool.start()
        with pytest.raises(UserError, match="does not fit the device's memory"):
            run(pool, 200)
    # Only the chunks that were on their way.
    assert len(list(tmp_path.iterdir())) <= pool.plan.max_in_flight
    assert pool.events == []


def test_a_device_that_dies_while_loading_is_started_again(tmp_path):
    found = []
    with pool_of(DyingDevice(tmp_path, deaths=1)) as pool:
        pool.start()
        assert run(pool, 5, lambda name, ids: found.extend((name, id) for id in ids)) is None
    assert sorted(found) == [("device:0", f"e/{i}") for i in range(5)]
    assert whats(pool) == ["device_lost"]


def test_two_devices_on_one_chip_are_refused():
    plan = replace(plan_devices("cpu", 1, readers=1), kind="gpu")
    pool = DevicePool(plan, lambda settings: None, 2)
    pool._note_place("device:0", Place("host", "10.0.0.1", "0"))
    pool._note_place("device:1", Place("host", "10.0.0.2", "0"))  # another host of this name
    message = r"^device:1 and device:2 have the same accelerator, GPU 0 of host; name each one once"
    with pytest.raises(UserError, match=message):
        pool._note_place("device:2", Place("host", "10.0.0.2", "0"))
    for name in ("cpu:0", "cpu:1"):  # devices without a chip share their host
        pool._note_place(name, Place("host", "10.0.0.3", None))
    # The chip of a device that was set aside is another's.
    pool.aside.add("device:1")
    pool._note_place("device:2", Place("host", "10.0.0.2", "0"))


def test_as_many_devices_as_share_a_chip_are_let_on_it():
    plan = replace(plan_devices("cpu", 1, readers=1), kind="gpu", part=0.5)
    pool = DevicePool(plan, lambda settings: None, 2)
    for name in ("device:0", "device:1"):
        pool._note_place(name, Place("host", "10.0.0.1", "0"))
    with pytest.raises(UserError, match=r"^device:0, device:1 and device:2 have the same acceler"):
        pool._note_place("device:2", Place("host", "10.0.0.1", "0"))


def test_a_device_that_always_dies_while_loading_ends_the_run_with_its_words(tmp_path):
    with pool_of(DyingDevice(tmp_path, deaths=100)) as pool:
        with pytest.raises(StoppedError, match=r"no device is left.* device:0 .*died") as stopped:
            pool.start()
        assert whats(pool) == ["device_lost", "device_lost", "device_set_aside"]
    assert stopped.value.exit_code == 1
    assert pool.actors == {}


class RefusingModel(DyingDevice):
    """A device whose model is refused."""

    def warm_up(self) -> None:
        raise UserError("model net.om: not an OM file")


def test_a_model_that_all_devices_refuse_is_bad_input_at_once(tmp_path):
    with pool_of(RefusingModel(tmp_path, 0), count=2) as pool:
        with pytest.raises(UserError, match="not an OM file"):
            pool.start()
        assert pool.events == []


class PoisonedDevice(DyingDevice):
    """A device that a picture kills, stops or makes raise, whichever device has it."""

    poison = "e/7"

    def process(self, chunk):
        if self.poison in [item.id for item in chunk]:
            self.break_down()
        return super().process(chunk)

    def break_down(self) -> None:
        os._exit(1)


class RaisingDevice(PoisonedDevice):
    """The picture makes it raise."""

    def break_down(self) -> None:
        raise RuntimeError("507033")


class StoppingDevice(PoisonedDevice):
    """The picture stops all of its threads."""

    def break_down(self) -> None:
        simulated.break_down("stop")


@pytest.mark.parametrize(
    ("device", "count"),
    [
        (PoisonedDevice, 1),
        (PoisonedDevice, 2),
        (RaisingDevice, 1),
        (RaisingDevice, 2),
        (StoppingDevice, 2),
    ],
)
def test_a_picture_that_breaks_every_device_has_failed_and_no_device(tmp_path, device, count):
    found = []
    timeout = 5.0 if device is StoppingDevice else 60.0
    with pool_of(device(tmp_path, 0), count, timeout=timeout) as pool:
        # A process of Ray's may take twenty seconds to start on a busy machine.
        pool.limits.opening = 60.0
        pool.start()
        assert run(pool, 30, lambda name, ids: found.extend(ids)) is None
        assert len(pool.actors) + len(pool.opening) == count
    assert sorted(found) == sorted(f"e/{i}" for i in range(30) if i != 7)
    assert [*pool.retries.given_up] == ["e/7"]
    assert "killed the device 3 times" in pool.retries.given_up["e/7"]
    assert whats(pool)[-1] == "picture_failed"
    assert len(pool.events) == 4


class SteppingAlong(DyingDevice):
    """A device with one long call, in which it goes on for so many steps and may then hang."""

    steps = 0

    def __init__(self, count: int, hangs: bool) -> None:
        self.count, self.hangs = count, hangs

    def warm_up(self) -> None:
        pass

    def process(self, chunk):
        for _ in range(self.count):
            time.sleep(0.05)
            self.steps += 1
        if self.hangs:
            time.sleep(600)
        return self.steps


def test_a_long_call_may_take_any_time_but_not_stand_still(monkeypatch):
    for hangs in (False, True):
        with pool_of(SteppingAlong(160, hangs)) as pool:
            pool.start(waits_for_all=True)
            actor, began = pool.actors["device:0"], time.monotonic()
            monkeypatch.setattr(pool.limits, "opening", 3.0)
            call = actor.process_directly.remote(None)
            if not hangs:
                assert pool.await_call("device:0", call) == 160
                assert time.monotonic() - began > 8
                continue
            with pytest.raises(StoppedError, match=r"device:0 .*: no batch has ended for 3 s"):
                pool.await_call("device:0", call)


class SlowReport(DyingDevice):
    """A device that does not come to its end."""

    def report(self) -> DeviceReport:
        raise RuntimeError("no report")


def test_a_device_that_gives_no_report_is_named(tmp_path):
    with pool_of(SlowReport(tmp_path, 0)) as pool:
        pool.start()
        pool.close()
    assert whats(pool) == ["device_failed"]
    assert "no report" in pool.events[0].text


@pytest.mark.parametrize("ahead", [-7.0, 0.0, 3600.0])
def test_what_another_machine_did_is_told_by_this_one_s_clock(ahead):
    now = time.time()
    began = ActivityRecord(started=now - 5 + ahead, inferring=[1.0])
    there = Answer(DeviceReport(host="elsewhere", activity=began), at=now + ahead)
    assert by_our_clock(there).activity.started == pytest.approx(now - 5, abs=1)
    here = Answer(DeviceReport(host=socket.gethostname(), activity=began), at=now + ahead)
    assert by_our_clock(here).activity is began


class BlindDevice(DyingDevice):
    """A device that reads files only if its number is not that of a host that does not see them."""

    def __init__(self, number: int, blind: tuple[int, ...]) -> None:
        self.is_blind = number in blind

    def warm_up(self) -> None:
        pass

    def process(self, chunk):
        if not self.is_blind:
            return [Detections(item.id) for item in chunk]
        error = "cannot be read: No such file or directory"
        return [Detections(item.id, error=error, is_doubtful=True) for item in chunk]


class Gatherer:
    """A reducer that counts."""

    def __init__(self) -> None:
        self.found: dict[str, str | None] = {}

    def add(self, table) -> None:
        for one in from_arrow(table):
            assert one.id not in self.found
            self.found[one.id] = one.error

    def result(self) -> dict[str, str | None]:
        return self.found


def run_blind(
    blind: tuple[int, ...], count: int, can_read: bool, gatherer: type = Gatherer
) -> tuple[DevicePool, dict]:
    import ray

    reducer = ray.remote(num_cpus=0)(gatherer).remote()
    plan = plan_devices("cpu", count, readers=1)
    pool = DevicePool(plan, lambda at: BlindDevice(at.number, blind), 2, reducer=reducer)
    pool.find_readable = lambda key: WorkItem(key, "", 0) if can_read else None
    with pool:
        pool.start()
        assert run(pool, 60) is None
    return pool, ray.get(reducer.result.remote())


def test_files_that_the_driver_can_read_are_another_device_s_work():
    pool, found = run_blind((1,), 2, can_read=True)
    assert found == {item.id: None for item in items_of(60)}
    blamed = [event for event in pool.events if event.what == "device_failed"]
    assert {event.device for event in blamed} == {"device:1"}
    assert "which the driver can (cannot be read: No such file" in blamed[0].text
    assert not pool.retries.given_up


def test_files_that_nobody_can_read_fail_and_no_device():
    pool, found = run_blind((0, 1), 2, can_read=False)
    assert set(found.values()) == {"cannot be read: No such file or directory"}
    assert len(found) == 60
    assert pool.events == []


class BlindFileDevice(BlindDevice):
    """Such a device without a reducer, as those of job=infer are."""

    def process(self, chunk):
        pairs = tuple((one.id, one.error or "") for one in super().process(chunk))
        return ChunkReport((), (), pairs) if self.is_blind else ChunkReport(tuple(dict(pairs)))


@pytest.mark.parametrize("can_read", [True, False])
def test_without_a_reducer_the_rule_is_the_same(can_read):
    plan = plan_devices("cpu", 2, readers=1)
    blind = (1,) if can_read else (0, 1)
    pool = DevicePool(plan, lambda at: BlindFileDevice(at.number, blind), 2)
    pool.find_readable = lambda key: WorkItem(key, "", 0) if can_read else None
    done, failed = [], []
    with pool:
        pool.start()
        run(pool, 60, lambda _, one: (done.extend(one.done), failed.extend(one.failures)))
    keys = sorted(item.id for item in items_of(60))
    assert sorted(done) == (keys if can_read else [])
    assert sorted(id for id, _ in failed) == ([] if can_read else keys)
    assert {event.device for event in pool.events} == ({"device:1"} if can_read else set())


def test_a_run_whose_devices_all_see_no_files_ends_with_their_words():
    with pytest.raises(StoppedError, match=r"no device is left.* cannot read e/\d+, which the dr"):
        run_blind((0,), 1, can_read=True)


def test_a_device_without_room_is_given_up(tmp_path, monkeypatch):
    from cfdist.distributed import pool as pooling

    monkeypatch.setattr(pooling, "_NODES_SECONDS", 0.2)
    # Ray knows no such accelerator, as when its node is gone.
    plan = replace(plan_devices("cpu", 1, readers=1), kind="npu", wait_s=1.0)
    with DevicePool(plan, lambda settings: DyingDevice(tmp_path, 0), 2) as pool:
        with pytest.raises(StoppedError, match="no node of the cluster has room for it"):
            pool.start()
        assert whats(pool) == ["device_set_aside"]


def test_nodes_that_go_are_named_and_those_that_come_are_used(tmp_path, monkeypatch):
    from cfdist.distributed import pool as pooling

    plan = replace(plan_devices("cpu", "auto", readers=1, nodes=[Node("a", 1, id="a")]), grows=True)
    there = [Node("a", 1, id="a"), Node("b", 1, id="b")]
    monkeypatch.setattr(pooling, "cluster_nodes", lambda kind: there)
    with DevicePool(plan, lambda settings: DyingDevice(tmp_path, 0), 2) as pool:
        monkeypatch.setattr(pool, "begin", lambda: None)
        pool._look_at_nodes()
        assert pool.plan.count == 1  # they were there when the run was planned
        there[1:] = [Node("c", 0, id="c")]
        pool._look_at_nodes()
        assert pool.plan.count == 1  # Ray tells the resources of a new node later
        assert [(event.what, event.host) for event in pool.events] == [("node_lost", "b")]
        there[1:] = [Node("c", 3, id="c")]
        pool._look_at_nodes()
        pool._look_at_nodes()
        assert pool.plan.count > 1
        assert pool._joining == {*pool.names} - {"device:0"}


def test_the_place_of_a_device_that_was_set_aside_gets_no_other(tmp_path, monkeypatch):
    from cfdist.distributed import pool as pooling

    plan = replace(plan_devices("cpu", 2, readers=1, nodes=[Node("a", 2, id="a")]), grows=True)
    there = [Node("a", 2, id="a")]
    monkeypatch.setattr(pooling, "cluster_nodes", lambda kind: there)
    with DevicePool(plan, lambda settings: DyingDevice(tmp_path, 0), 2) as pool:
        monkeypatch.setattr(pool, "begin", lambda: None)
        pool._look_at_nodes()
        for name, place in (("device:1", Place("a", "", "1")), ("device:2", Place("a", "", "1"))):
            pool._places[name] = place
            pool._set_aside(name, "it failed again")
        assert pool._spoilt_room() == 1
        there.append(Node("b", 2, id="b"))
        for _ in range(3):
            pool._look_at_nodes()
        assert len(pool.names) == 3  # of four places one is spoilt
        del there[0]
        pool._look_at_nodes()
        assert pool._spoilt_room() == 0


class LosingGatherer(Gatherer):
    """A reducer that does not get the first detections: their node is gone."""

    is_first = True

    def add(self, table) -> None:
        if self.is_first:
            from ray.exceptions import ObjectLostError

            self.is_first = False
            raise ObjectLostError("00" * 28, None, "")
        super().add(table)


def test_detections_that_are_lost_before_the_journal_has_them_are_made_again():
    pool, found = run_blind((), 2, can_read=True, gatherer=LosingGatherer)
    assert found == {item.id: None for item in items_of(60)}
    assert pool.events == []


def test_lost_detections_bring_back_only_their_own_pictures(tmp_path, monkeypatch):
    import ray

    def lost(ref):
        raise ray.exceptions.ObjectLostError("00" * 28, None, "")

    pool = pool_of(DyingDevice(tmp_path, 0))
    one_round = _Round(pool, Work((), 0), [], lambda name, report: None)
    rows = [Row(key, Slice((), 0, 1)) for key in ("done", "doubtful")]
    handed = _Handed("device:0", None, rows, [], 0, False, 0.0, 1, None)
    one_round._adding["ref"] = handed, ChunkReport(("done",), doubtful=(("doubtful", "NaN"),))
    monkeypatch.setattr(ray, "get", lost)
    one_round._take_in_added("ref")
    # The other may have been done on another device since, and a picture is done once.
    assert [row.key for row in pool.retries.take_first("device:0", 9, pool.actors)] == ["done"]


def test_a_picture_that_is_tried_again_after_all_has_no_event(tmp_path):
    pool = pool_of(DyingDevice(tmp_path, 0))
    for key in ("p", "q"):
        for device in ("device:0", "device:0", "device:0" if key == "p" else "device:1"):
            pool.retries.fail(device, [Row(key, None)], "died")
    pool.note_given_up()
    pool.note_given_up()
    assert [event.text.partition(":")[0] for event in pool.events] == ["p", "q"]
    pool.retries.forget("device:1")
    pool.note_given_up()
    assert [event.text.partition(":")[0] for event in pool.events] == ["p"]
    pool.retries.fail("device:2", [Row("q", None)], "raised")
    pool.note_given_up()
    assert "(device:0, device:2): raised" in pool.events[1].text


def test_a_device_that_waits_for_what_another_job_holds_says_so_once(tmp_path, monkeypatch, capsys):
    import ray

    from cfdist.distributed import pool as pooling

    class Holder:
        def is_there(self) -> bool:
            return True

    monkeypatch.setattr(pooling, "_NODES_SECONDS", 0.1)
    monkeypatch.setattr(pooling, "_SAID_AFTER", 0.5)
    monkeypatch.setattr(pooling, "other_jobs", lambda: 2)
    with pool_of(DyingDevice(tmp_path, 0)) as pool:
        plan, before = pool.plan, pool.watch
        holder = ray.remote(Holder).options(num_cpus=plan.cpus).remote()
        ray.get(holder.is_there.remote())
        said = []

        def watch(ended) -> None:
            before(ended)
            said.append(capsys.readouterr().out)
            if said[-1]:
                ray.kill(holder)

        pool.watch = watch
        pool.start()
        assert pool.actors
    (line,) = "".join(said).splitlines()
    assert line.startswith(f"1 of 1 devices wait for {plan.cpus:g} CPU of one node each, which 2 ")
    assert " 0 CPU); the run begins when they are free" in line

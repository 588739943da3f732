"""A pool of real Ray actors: devices that die, never get ready, or have no place."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from cfdist.devices.base import DeviceReport
from cfdist.distributed.accelerators import Place
from cfdist.distributed.nodes import Node
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.pool import DevicePool
from cfdist.distributed.retries import Row
from cfdist.errors import StoppedError, UserError
from tests.distributed.pools import DyingDevice, classes_by_value, items_of, pool_of, run, whats  # noqa: F401

pytestmark = pytest.mark.usefixtures("ray_session")


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
        for name in ("device:1", "device:2"):
            pool._places[name] = Place("a", "", "1", "a")
            pool._set_aside(name, "it failed again")
        assert pool._spoilt_room() == 1
        there.append(Node("b", 2, id="b"))
        for _ in range(3):
            pool._look_at_nodes()
        assert len(pool.names) == 3  # of four places one is spoilt
        del there[0]
        pool._look_at_nodes()
        assert pool._spoilt_room() == 0


def test_a_node_that_sees_no_pictures_gets_no_further_device(tmp_path, monkeypatch):
    from cfdist.distributed import pool as pooling

    there = [Node("a", 1, id="a"), Node("a", 1, id="blind")]  # one machine may be two nodes
    plan = replace(plan_devices("cpu", 2, readers=1, nodes=there), grows=True)
    monkeypatch.setattr(pooling, "cluster_nodes", lambda kind: there)
    with DevicePool(plan, lambda settings: DyingDevice(tmp_path, 0), 2) as pool:
        monkeypatch.setattr(pool, "begin", lambda: None)
        pool._look_at_nodes()
        pool._places = {
            f"device:{n}": Place("a", "", None, node.id) for n, node in enumerate(there)
        }
        pool._set_aside("device:1", "it failed again")
        assert not pool.plan.without  # none other goes on
        pool.aside.clear()
        pool.actors["device:0"] = None
        pool._set_aside("device:1", "it failed again")
        assert pool.plan.actor_options["label_selector"] == {"ray.io/node-id": "!in(blind)"}
        there.append(Node("b", 1, id="b"))
        for _ in range(3):
            pool._look_at_nodes()
        assert pool.names == ["device:0", "device:2"]
        assert "node_lost" not in whats(pool)
        pool.actors.clear()


def test_a_spoilt_node_is_left_out_once_another_goes_on_and_taken_when_none_is_left(
    tmp_path, monkeypatch
):
    from cfdist.distributed import pool as pooling

    there = [Node("a", 1, id="a"), Node("b", 1, id="b")]
    plan = plan_devices("cpu", 2, readers=1, nodes=there)
    monkeypatch.setattr(pooling, "cluster_nodes", lambda kind: there)
    with DevicePool(plan, lambda settings: DyingDevice(tmp_path, 0), 2) as pool:
        monkeypatch.setattr(pool, "begin", lambda: None)
        monkeypatch.setattr(pooling, "kill_actors", lambda actors: None)
        pool._look_at_nodes()
        pool._places = {
            f"device:{n}": Place(node.host, "", None, node.id) for n, node in enumerate(there)
        }
        pool._set_aside("device:1", "it failed again")  # the other one loads
        pool.actors["device:0"] = None
        pool._look_at_nodes()
        assert pool.plan.without == ("b",)
        pool.actors.clear()
        pool._look_at_nodes()
        assert pool.plan.without == ("b",)  # it starts again, and its node is there
        pool.opening["call"] = pooling._Opening("device:0", None, None, 0.0, without=("b",))
        del there[0]
        pool._look_at_nodes()
        assert not pool.plan.without
        assert not pool.opening  # it was begun anew, without what is there no longer
        assert whats(pool) == ["device_set_aside", "node_lost"]


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

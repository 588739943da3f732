"""Dealing out to real Ray actors: refused chunks, pictures that break devices, lost detections."""

from __future__ import annotations

import os

import pytest

from cfdist.backends import simulated
from cfdist.detections import Detections, as_table, from_arrow
from cfdist.devices.base import ChunkReport
from cfdist.distributed.dealing import Round, _Handed
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.pool import DevicePool
from cfdist.distributed.retries import Row
from cfdist.distributed.work import Slice, Work
from cfdist.errors import StoppedError, UserError
from cfdist.widerface.manifest import WorkItem
from tests.distributed.pools import DyingDevice, classes_by_value, items_of, pool_of, run, whats  # noqa: F401

pytestmark = pytest.mark.usefixtures("ray_session")


class RefusingDevice(DyingDevice):
    """A device that takes no chunk and notes each that it was given."""

    def process(self, chunk):
        (self.folder / chunk[0].id.replace("/", "_")).touch()
        raise UserError("model.batch=2: does not fit the device's memory")


def test_a_refused_chunk_ends_the_round(tmp_path):
    with pool_of(RefusingDevice(tmp_path, 0)) as pool:
        pool.start()
        with pytest.raises(UserError, match="does not fit the device's memory"):
            run(pool, 200)
    # Only the chunks that were on their way.
    assert len(list(tmp_path.iterdir())) <= pool.plan.max_in_flight
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
    # A process of Ray's may take twenty seconds to start on a busy machine.
    timeout = 25.0 if device is StoppingDevice else 60.0
    with pool_of(device(tmp_path, 0), count, timeout=timeout) as pool:
        pool.start()
        assert run(pool, 30, lambda name, ids: found.extend(ids)) is None
        assert len(pool.actors) + len(pool.opening) == count
    assert sorted(found) == sorted(f"e/{i}" for i in range(30) if i != 7)
    assert [*pool.retries.given_up] == ["e/7"]
    assert "killed the device 3 times" in pool.retries.given_up["e/7"]
    assert whats(pool)[-1] == "picture_failed"
    assert len(pool.events) == 4


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

    def add(self, found) -> None:
        for one in from_arrow(as_table(found)):
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


class LosingGatherer(Gatherer):
    """A reducer that does not get the first detections: their node is gone."""

    is_first = True

    def add(self, found) -> None:
        if self.is_first:
            from ray.exceptions import ObjectLostError

            self.is_first = False
            raise ObjectLostError("00" * 28, None, "")
        super().add(found)


def test_detections_that_are_lost_before_the_journal_has_them_are_made_again():
    pool, found = run_blind((), 2, can_read=True, gatherer=LosingGatherer)
    assert found == {item.id: None for item in items_of(60)}
    assert pool.events == []


def test_lost_detections_bring_back_only_their_own_pictures(tmp_path, monkeypatch):
    import ray

    def lost(ref):
        raise ray.exceptions.ObjectLostError("00" * 28, None, "")

    pool = pool_of(DyingDevice(tmp_path, 0))
    one_round = Round(pool, Work((), 0), [], lambda name, report: None)
    rows = [Row(key, Slice((), 0, 1)) for key in ("done", "doubtful")]
    handed = _Handed("device:0", None, rows, [], 0, False, 0.0, 1, None)
    one_round._adding["ref"] = handed, ChunkReport(("done",), doubtful=(("doubtful", "NaN"),))
    monkeypatch.setattr(ray, "get", lost)
    one_round._take_in_added("ref")
    # The other may have been done on another device since, and a picture is done once.
    assert [row.key for row in pool.retries.take_first("device:0", 9, pool.actors)] == ["done"]

"""Rounds through real Ray actors: lost devices, resumed runs, sharing of work."""

from __future__ import annotations

import heapq
import os
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist import inputs
from cfdist.distributed import cluster
from cfdist.distributed.chunks import (
    MAX_CHUNK,
    Shares,
    chunk_for_rate,
    largest_chunk,
)
from cfdist.distributed.device import DeviceReport
from cfdist.distributed.device_pool import MAX_RESTARTS, DevicePool
from cfdist.distributed.run import Timeline, evaluate_manifest
from cfdist.errors import UserError
from cfdist.widerface.manifest import WorkItem

pytestmark = pytest.mark.usefixtures("ray_session")

OPTIONS = {"precision": "f32"}


@pytest.fixture(scope="module")
def run(compose, spec):
    """Evaluates the first 40 sample pictures at a small input size."""
    config = compose("dataset.limit=40")
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    model = spec(height=256, width=256, batch=4)

    def evaluate(output: Path, devices: int = 2, on_done=lambda report: None):
        plan = cluster.plan_devices("cpu", devices, feeders=1, streams=1, slot_bytes=4 * 256 * 256)
        return evaluate_manifest(
            manifest,
            truth,
            backend="openvino",
            spec=model,
            options=OPTIONS,
            plan=plan,
            output=output,
            fingerprint="f",
            style="official",
            on_ready=lambda done: None,
            on_done=on_done,
        )

    return evaluate


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An undisturbed run and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), folder


def same_files(a: Path, b: Path) -> bool:
    def lasting(folder: Path) -> list[Path]:
        return sorted(
            p.relative_to(folder)
            for p in folder.rglob("*")
            if p.is_file() and p.parent.name != "journal"
        )

    names = lasting(a)
    assert names == lasting(b)
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_a_whole_run(whole):
    outcome, folder = whole
    assert sorted(outcome.devices) == ["device:0", "device:1"]
    assert sum(report.pictures for report in outcome.devices.values()) == 40
    assert all(report.pictures for report in outcome.devices.values())
    assert outcome.evaluation.failures == ()
    assert len(list((folder / "predictions").rglob("*.txt"))) == 40


def test_a_lost_device_changes_nothing_but_the_time(run, whole, tmp_path):
    import ray

    killed = []

    def kill_one(report):
        if not killed:
            killed.append(True)
            ray.kill(ray.get_actor("device:1"))

    outcome = run(tmp_path, on_done=kill_one)

    assert killed
    assert outcome.lost == ("device:1",)
    assert outcome.timeline.points[-1][1] == 40  # all pictures are accounted for
    assert outcome.evaluation.ap == whole[0].evaluation.ap
    assert same_files(tmp_path, whole[1])


def test_an_interrupted_run_does_only_the_rest(run, whole, tmp_path):
    import ray

    class InterruptError(Exception):
        pass

    seen = []

    def interrupt(report):
        seen.append(report.done)
        if len(seen) == 2:
            raise InterruptError

    with pytest.raises(InterruptError):
        run(tmp_path, on_done=interrupt)
    assert (tmp_path / "journal").is_dir()
    for name in ("device:0", "device:1", "reducer"):
        with pytest.raises(ValueError):
            ray.get_actor(name)  # an aborted run leaves no actor behind

    outcome = run(tmp_path)

    assert outcome.resumed >= sum(seen)
    inferred = sum(report.pictures for report in outcome.devices.values())
    assert inferred == 40 - outcome.resumed
    assert outcome.evaluation.ap == whole[0].evaluation.ap
    assert same_files(tmp_path / "predictions", whole[1] / "predictions")


def test_more_accelerators_than_there_are_is_the_user_s_error():
    with pytest.raises(UserError, match="devices=2: Ray sees 0 NPU"):
        cluster.plan_devices("npu", 2, feeders="auto", streams="auto", slot_bytes=1)
    with pytest.raises(UserError, match="devices=auto: Ray sees 0 GPU"):
        cluster.plan_devices("gpu", "auto", feeders="auto", streams="auto", slot_bytes=1)


def test_cores_are_shared_between_cpu_devices():
    import ray

    cores = int(ray.cluster_resources()["CPU"])
    one = cluster.plan_devices("cpu", 1, feeders="auto", streams="auto", slot_bytes=1)
    assert (one.count, one.threads, one.slots, one.feeders) == (1, cores, cores, cores)
    many = cluster.plan_devices("cpu", 2 * cores, feeders=3, streams=1, slot_bytes=1)
    assert (many.threads, many.slots, many.feeders, many.cpus) == (1, 1, 3, 0.5)
    listed = cluster.plan_devices("cpu", [0, 1, 2], feeders=1, streams=1, slot_bytes=1)
    assert listed.count == 3
    crowded = cluster.plan_devices("cpu", 1, feeders=1, streams="auto", slot_bytes=10**12)
    assert crowded.slots == 1


def timeline_of(slots: int, *chunks: tuple[float, str, int]) -> Timeline:
    """A run that began at 0: (seconds, device, pictures) of each chunk, as they ended."""
    timeline = Timeline(slots)
    with pytest.MonkeyPatch.context() as patch:
        for seconds, device, pictures in chunks:
            patch.setattr("cfdist.distributed.run.time.perf_counter", lambda now=seconds: now)
            timeline.add(device, pictures)
    return timeline


def test_the_steady_rate_leaves_out_each_device_s_first_chunk():
    # Two devices of 8 pictures a second each, of which one begins late.
    chunks = [(1.0, "a", 8), (1.7, "b", 8), (2.0, "a", 8), (2.7, "b", 8), (3.0, "a", 8)]
    chunks += [(3.7, "b", 8), (4.0, "a", 8), (4.7, "b", 8), (5.0, "a", 8)]
    timeline = timeline_of(1, *chunks)
    assert timeline.seconds == 5.0
    assert timeline.first_seconds == 1.0
    # "b" had a chunk under way at the end, which does not count in part.
    assert timeline.steady_rate == pytest.approx(32 / 4 + 24 / 3.3)


def test_a_device_s_slots_begin_together():
    chunks = [(1.0, "a", 4), (1.5, "a", 4), (3.0, "a", 4), (3.5, "a", 4), (5.0, "a", 4)]
    assert timeline_of(2, *chunks).steady_rate == pytest.approx(12 / (5.0 - 1.25))


@given(
    seconds=st.lists(st.floats(0.1, 10), min_size=1, max_size=6),
    starts=st.lists(st.floats(0, 20), min_size=6, max_size=6),
)
def test_the_steady_rate_is_never_more_than_the_devices_can(seconds, starts):
    ends = [
        (start + each * (i + 1), str(device), 4)
        for device, (each, start) in enumerate(zip(seconds, starts, strict=False))
        for i in range(int(60 / each))
    ]
    rate = timeline_of(1, *sorted(ends)).steady_rate
    assert rate is None or rate <= sum(4 / each for each in seconds) * (1 + 1e-9)


def test_there_is_no_steady_rate_of_too_little():
    assert timeline_of(1, (5.0, "a", 8), (5.1, "b", 8), (7.1, "a", 8)).steady_rate is None
    assert timeline_of(1, (5.0, "a", 8), (5.1, "a", 32)).steady_rate is None  # too short
    assert timeline_of(1).steady_rate is None
    assert timeline_of(1).seconds == 0.0


class Listed(list):
    """Work that needs no Ray."""

    count = property(len)


def items_of(count: int) -> Listed:
    return Listed(WorkItem(f"e/{i}", "", 0) for i in range(count))


@pytest.mark.parametrize(
    ("items", "chunk", "slots", "batch", "expected"),
    [
        (100, 16, 2, 1, [13, 11, 10, 9, 8, 7, 6, 5, 4, 4, 3, 3, 3, 2, 2, 2, *[1] * 8]),
        (8, 8, 4, 1, [1] * 8),
        (3, 8, 4, 1, [1, 1, 1]),
        (40, 16, 1, 4, [12, 8, 8, 4, 4, 4]),
        (40, 16, 2, 16, [16, 16, 8]),
        (9, 16, 2, 4, [4, 4, 1]),
        (48, 4, 2, 1, [*[4] * 6, 3, 3, 3, 2, 2, 2, 2, *[1] * 7]),
    ],
)
def test_lanes_end_with_small_chunks(items, chunk, slots, batch, expected):
    shares = Shares(items_of(items), ["device"], slots, batch)
    chunks = []
    while found := shares.next_chunk("device", chunk):
        chunks.append(found)
    assert [len(one) for one in chunks] == expected
    assert [item.id for one in chunks for item in one] == [f"e/{i}" for i in range(items)]


def finish_times(
    seconds: list[float], items: int, unit: int, chunk: int, window: int
) -> tuple[list[float], list[int]]:
    """Plays a round: devices that take so many seconds an item, one chunk after the other.

    Returns:
        When each device had nothing left to do, and how many items it did.
    """
    shares = Shares(items_of(items), map(str, range(len(seconds))), 1, unit)
    ends, done = [0.0] * len(seconds), [0] * len(seconds)
    running: list[tuple[float, int, int]] = []  # a heap of (end, device, items)

    def hand_out(device: int, now: float) -> None:
        count = len(shares.next_chunk(str(device), chunk))
        if count:
            # A part of a unit takes as long as a whole one.
            work = -(-count // unit) * unit * seconds[device]
            ends[device] = max(now, ends[device]) + work
            heapq.heappush(running, (ends[device], device, count))

    for _ in range(window):
        for device in range(len(seconds)):
            hand_out(device, 0.0)
    while running:
        now, device, count = heapq.heappop(running)
        done[device] += count
        shares.give_back(str(device), count, is_finished=True)
        hand_out(device, now)
    return ends, done


@given(
    devices=st.integers(1, 16),
    items=st.integers(1, 3000),
    unit=st.integers(1, 16),
    units=st.integers(1, 4),
    window=st.integers(1, 4),
)
def test_equal_devices_end_together(devices, items, unit, units, window):
    ends, done = finish_times([1.0] * devices, items, unit, unit * units, window)
    assert sum(done) == items
    fewest_units = ceil(ceil(items / unit) / devices)
    assert max(ends) <= (fewest_units + 1) * unit


@given(
    seconds=st.lists(st.floats(0.1, 10), min_size=2, max_size=8),
    units=st.integers(1, 4),
    window=st.integers(2, 4),
)
def test_devices_of_any_speeds_end_about_together(seconds, units, window):
    items = 4000
    ends, done = finish_times(seconds, items, 4, 4 * units, window)
    assert sum(done) == items
    ideal = items / sum(1 / each for each in seconds)
    # What a device is given before its speed is known may be too much.
    before = 4 * (1 + units * window) * max(seconds)
    assert max(ends) <= max(ideal * 1.02 + 3 * 4 * max(seconds), before)


def test_what_failed_does_not_count_as_finished():
    shares = Shares(items_of(40), "ab", 1, 1)
    lost = shares.next_chunk("a", 8)
    assert [len(lost), len(shares.next_chunk("b", 8))] == [5, 5]
    shares.give_back("a", len(lost), is_finished=False)
    # "b" is as fast as "a" as far as is known: of 35 that are not finished, each has half.
    assert len(shares.next_chunk("a", 100)) == ceil(30 / 8)
    assert len(shares.next_chunk("b", 100)) == ceil(26 / 8)


@given(batch=st.integers(1, 200), group=st.integers(1, 4), rate=st.floats(0, 1e6, allow_nan=False))
def test_chunks_are_whole_batches_that_fit_the_buffers(batch, group, rate):
    chunk = batch * group
    size = chunk_for_rate(chunk, rate)
    assert size % batch == 0
    assert batch * group <= chunk <= size <= largest_chunk(chunk)
    assert chunk_for_rate(chunk, 0.0) == chunk
    assert largest_chunk(chunk) <= max(chunk, MAX_CHUNK)


def dying_device(folder: Path, deaths: int) -> type:
    """A device whose process dies while loading, until it has so often; then it works."""

    class DyingDevice:
        def warm_up(self, chunk: int, buffers: int, reducer=None) -> None:
            count = len(list(folder.iterdir()))
            if count < deaths:
                (folder / f"{os.getpid()}").touch()
                os._exit(1)

        def process(self, items):
            return [item.id for item in items]

        def report(self) -> DeviceReport:
            return DeviceReport()

        def close(self) -> None:
            pass

    return DyingDevice


def refusing_device(folder: Path) -> type:
    """A device that takes no chunk and notes each that it was given."""

    class RefusingDevice(dying_device(folder, 0)):
        def process(self, items):
            (folder / items[0].id.replace("/", "_")).touch()
            raise UserError("model.batch=2: does not fit the device's memory")

    return RefusingDevice


def test_what_a_device_refuses_ends_the_round(tmp_path):
    pool = pool_of(refusing_device(tmp_path))
    try:
        pool.start()
        with pytest.raises(UserError, match="does not fit the device's memory"):
            pool.run_round(items_of(200), lambda *_: None)
    finally:
        pool.kill()
    # Only those that were on their way.
    assert len(list(tmp_path.iterdir())) <= pool._plan.window
    assert pool.lost == []


def test_a_device_is_dead_where_its_own_process_is():
    import ray

    errors = ray.exceptions
    ended = errors.OutOfMemoryError("the node is short of memory")
    assert cluster.is_death(ended)
    assert cluster.is_death(errors.ActorDiedError())
    assert not cluster.is_death(errors.RayTaskError("process", "traceback", ValueError()))
    # A device whose reducer was ended is alive.
    wrapped = errors.RayTaskError("process", "traceback", ended).as_instanceof_cause()
    assert isinstance(wrapped, errors.OutOfMemoryError)
    assert not cluster.is_death(wrapped)
    for error in (ended, wrapped):
        explained = cluster.user_error(error)
        assert isinstance(explained, UserError)
        assert "choose a smaller model.batch" in str(explained)


def pool_of(device_class: type) -> DevicePool:
    plan = cluster.plan_devices("cpu", 1, feeders=1, streams=1, slot_bytes=1)
    return DevicePool(plan, device_class, (), 2)


def test_a_device_that_dies_while_loading_is_started_again(tmp_path):
    pool = pool_of(dying_device(tmp_path, deaths=2))
    found = []
    try:
        pool.start()
        work = items_of(5)
        assert pool.run_round(work, lambda name, ids: found.extend((name, id) for id in ids)) == []
    finally:
        pool.kill()
    assert sorted(found) == [("device:0", f"e/{i}") for i in range(5)]
    assert pool.lost == ["device:0", "device:0"]


def test_a_device_that_always_dies_while_loading_ends_the_run(tmp_path):
    import ray

    pool = pool_of(dying_device(tmp_path, deaths=100))
    try:
        with pytest.raises(ray.exceptions.RayActorError):
            pool.start()
    finally:
        pool.kill()
    assert len(pool.lost) == MAX_RESTARTS + 1

"""Rounds through real Ray actors (lost or faulty devices, resumed runs, every supply); rates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle

from cfdist import inputs
from cfdist.backends.model import BackendModel
from cfdist.distributed import rounds
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.rounds import (
    EvaluationTask,
    Listener,
    Timeline,
    evaluate_manifest,
    run_rounds,
)
from cfdist.distributed.work import KeptPictures, item_work, kept_work, letterboxing_work
from cfdist.errors import StoppedError, UserError
from cfdist.monitoring.monitor import Monitor
from cfdist.widerface.manifest import WorkItem

SIZE = (256, 256)


class PlayedPool:
    """A pool that does in each round the keys it is told to, and gives up others."""

    def __init__(self, *rounds: tuple[set[str], set[str]]) -> None:
        self.rounds, self.seen = [*rounds], []
        self.retries = SimpleNamespace(given_up={})
        self.begin = self.start = lambda: None
        self.monitor = Monitor()

    def deal_out(self, work, keys, on_done):
        assert work.made == keys
        self.seen.append(keys)
        done, given_up = self.rounds.pop(0)
        on_done("device:0", sorted(done))
        self.retries.given_up |= dict.fromkeys(given_up, "broken")


@pytest.fixture(autouse=True)
def played_pools_deal_out_themselves(monkeypatch):
    def deal_out(pool, work, keys, on_done):
        is_played = isinstance(pool, PlayedPool)
        return pool.deal_out(work, keys, on_done) if is_played else deal(pool, work, keys, on_done)

    deal = rounds.deal_out
    monkeypatch.setattr(rounds, "deal_out", deal_out)


def play(pool: PlayedPool, folder: Path = Path(), items: Sequence[WorkItem] = ()) -> dict[str, str]:
    """Run items, or four pictures of a folder, through a pool; returns those that were given up."""
    found = {}
    items = items or [WorkItem(f"e/{i}", str(folder / str(i)), 0) for i in range(4)]

    def make_work(items):
        return ClosedWork(made=[item.key for item in items])

    run_rounds(pool, items, make_work, lambda: None, lambda name, done: done, found.update)
    return found


def test_a_round_is_over_what_is_neither_done_nor_given_up():
    pool = PlayedPool(({"e/3"}, {"e/0"}), ({"e/1", "e/2"}, set()))
    assert play(pool) == {"e/0": "broken"}
    assert pool.seen == [["e/0", "e/1", "e/2", "e/3"], ["e/1", "e/2"]]


def test_pictures_that_are_neither_done_nor_given_up_are_no_success():
    pool = PlayedPool(({"e/3"}, set()), ({"e/2"}, set()), (set(), {"e/0"}))
    with pytest.raises(RuntimeError, match="1 pictures are neither done nor given up"):
        play(pool)


def test_pictures_that_are_gone_with_their_folder_end_the_run_and_do_not_fail(tmp_path):
    class Unread(PlayedPool):
        def deal_out(self, work, keys, on_done):
            assert self.find_readable("e/0") is None  # a picture that is gone has failed
            tmp_path.rmdir()
            self.find_readable("e/0")

    with pytest.raises(StoppedError, match=rf"cannot be read any more \({tmp_path}: No such file"):
        play(Unread(), tmp_path)


def test_pictures_that_are_gone_with_one_of_several_folders_have_failed(tmp_path):
    (tmp_path / "0").mkdir()  # the other pictures' folder

    class Unread(PlayedPool):
        def deal_out(self, work, keys, on_done):
            assert self.find_readable("e/0") is None
            (tmp_path / "0").rmdir()
            self.find_readable("e/0")

    items = [WorkItem("e/0", str(tmp_path / "gone" / "0"), 0)]
    items.append(WorkItem("e/1", str(tmp_path / "0" / "1"), 0))
    with pytest.raises(StoppedError, match=rf"any more \({tmp_path}/gone: No such file"):
        play(Unread(), items=items)


def test_the_monitor_learns_of_each_picture():
    pool = PlayedPool(({"e/3"}, {"e/0"}), ({"e/1", "e/2"}, set()))
    play(pool)
    state = pool.monitor.snapshot()
    assert (state.done, state.failed) == (4, 1)
    assert [(one["name"], one["done"]) for one in state.devices] == [("device:0", 3)]


class Told(Monitor):
    """Calls a function with the number of pictures of each chunk that is done."""

    def __init__(self, on_done) -> None:
        super().__init__()
        self.on_done = on_done

    def add(self, pictures: int, failed: int, device: str = "") -> None:
        super().add(pictures, failed, device)
        self.on_done(pictures)


@pytest.fixture(scope="module")
def run(compose, spec, ray_session):
    """Evaluates the first 40 sample pictures at a small input size."""
    config = compose("dataset.limit=40")
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    model = spec(height=256, width=256, batch=4)

    def evaluate(
        output: Path,
        on_done=lambda pictures: None,
        supply: str = "device",
        passes: int = 1,
        backend: BackendModel | None = None,
        kept: KeptPictures | None = None,
    ):
        output.mkdir(exist_ok=True)
        make_work = item_work
        if supply == "cluster":
            make_work = lambda items: letterboxing_work(items, SIZE, 4, kept)  # noqa: E731
        elif kept is not None:
            make_work = lambda items: kept_work(items, kept)  # noqa: E731
        plan = plan_devices("cpu", 2, readers=1)
        if supply == "cluster":
            plan = replace(plan, cpus=0.0)
        task = EvaluationTask(
            manifest.repeated(passes),
            truth,
            backend or BackendModel("openvino", model, {"precision": "f32"}),
            plan,
            output,
            RunIdentity("f", "openvino"),
            "official",
            make_work,
        )
        return evaluate_manifest(task, Listener(lambda done, failed: None, Told(on_done)))

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

    def kill_one(pictures):
        if not killed:
            killed.append(True)
            ray.kill(ray.get_actor("device:1"))

    outcome = run(tmp_path, on_done=kill_one)

    assert killed
    assert [(event.what, event.device) for event in outcome.events] == [("device_lost", "device:1")]
    assert outcome.timeline.points[-1][1] == 40  # all pictures are accounted for
    assert outcome.evaluation.ap == whole[0].evaluation.ap
    assert same_files(tmp_path, whole[1])


def test_an_interrupted_run_does_only_the_rest(run, whole, tmp_path):
    import ray

    class InterruptError(Exception):
        pass

    seen = []

    def interrupt(pictures):
        seen.append(pictures)
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


@pytest.mark.parametrize(("supply", "passes"), [("device", 1), ("cluster", 2)])
def test_kept_pictures_give_the_same_bytes_in_the_run_that_keeps_them_and_the_next(
    run, whole, tmp_path, supply, passes
):
    kept = KeptPictures("f", SIZE)
    for name, decoded in (("first", 40), ("second", 0)):
        report = run(tmp_path / name, supply=supply, passes=passes, kept=kept)
        assert same_files(tmp_path / name, whole[1])
        assert report.timeline.points[-1][1] == 40 * passes
        assert sum(device.decoded for device in report.devices.values()) == decoded
        assert len(kept.rows) == 40


def test_a_device_that_dies_leaves_no_lost_picture_to_the_next_run(run, whole, tmp_path):
    import ray

    kept, killed = KeptPictures("f", SIZE), []

    def kill(pictures):
        if not killed:
            killed.append(ray.get_actor("device:0"))
            ray.kill(killed[0])

    first = run(tmp_path / "first", on_done=kill, kept=kept)
    assert [(event.what, event.device) for event in first.events] == [("device_lost", "device:0")]
    report = run(tmp_path / "second", kept=kept)
    assert report.events == []
    assert sum(device.decoded for device in report.devices.values()) == 0
    for name in ("first", "second"):
        assert same_files(tmp_path / name, whole[1])


def test_a_stage_gives_the_same_bytes(run, whole, tmp_path):
    report = run(tmp_path, supply="cluster")
    assert same_files(tmp_path, whole[1])
    assert sum(device.decoded for device in report.devices.values()) == 40


def test_a_run_that_was_interrupted_keeps_what_it_had_finished(run, whole, tmp_path):
    class InterruptError(Exception):
        pass

    seen = []

    def interrupt(pictures):
        seen.append(pictures)
        if len(seen) == 2:
            raise InterruptError

    kept = KeptPictures("f", SIZE)
    with pytest.raises(InterruptError):
        run(tmp_path, on_done=interrupt, kept=kept)
    assert len(kept.rows) == sum(seen)
    assert run(tmp_path, kept=kept).resumed >= sum(seen)
    assert same_files(tmp_path / "predictions", whole[1] / "predictions")
    # What neither run has kept is done by the next one.
    before = len(kept.rows)
    report = run(tmp_path / "next", kept=kept)
    assert sum(device.decoded for device in report.devices.values()) == 40 - before
    assert len(kept.rows) == 40
    assert same_files(tmp_path / "next", whole[1])


@pytest.mark.parametrize("fault", ["nan", "inf", "inf_scores"])
def test_outputs_of_one_device_that_are_not_finite_are_another_s_work(run, spec, tmp_path, fault):
    options = {"latency_ms": 5, "preset": None, "fault": fault, "fault_device": 1}
    faulty = BackendModel("simulated", spec(height=256, width=256, batch=4), options)
    report = run(tmp_path, backend=faulty)
    assert report.evaluation.failures == ()
    assert len(list((tmp_path / "predictions").rglob("*.txt"))) == 40
    assert {event.device for event in report.events} == {"device:1"}
    assert report.events[0].what == "device_failed"


@pytest.mark.parametrize("fault", ["nan", "inf_scores"])
def test_outputs_that_are_finite_on_no_device_fail_their_pictures(run, spec, tmp_path, fault):
    options = {"latency_ms": 1, "preset": None, "fault": fault, "fault_device": None}
    faulty = BackendModel("simulated", spec(height=256, width=256, batch=4), options)
    report = run(tmp_path, backend=faulty)
    failures = report.evaluation.failures
    assert len(failures) == 40
    assert report.timeline.points[-1][1] == 0  # no rate counts them
    reason = "the model's outputs hold NaN or infinite values (device:"
    assert all(why.startswith(reason) for _, why in failures)


def test_a_store_too_small_for_two_blocks_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setattr("cfdist.distributed.work.store_bytes", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"where=cluster: Ray's object store has 1 MB, two blocks"):
        run(tmp_path, supply="cluster")


def timeline_of(streams: int, *chunks: tuple[float, str, int]) -> Timeline:
    """A run that began at 0: (seconds, device, pictures) of each chunk, as they ended."""
    timeline = Timeline(streams)
    with pytest.MonkeyPatch.context() as patch:
        for seconds, device, pictures in chunks:
            patch.setattr("cfdist.distributed.rounds.time.perf_counter", lambda now=seconds: now)
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


def test_a_device_s_streams_begin_together():
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
    # One chunk a device behind the first ones, however long it took.
    assert timeline_of(1, (1.0, "a", 8), (9.0, "a", 8)).steady_rate is None
    one_each = [(1.0, "a", 8), (1.0, "b", 8), (9.0, "a", 8), (9.0, "b", 8)]
    assert timeline_of(1, *one_each).steady_rate is None
    assert timeline_of(1, *one_each, (17.0, "a", 8)).steady_rate is not None
    assert timeline_of(1).steady_rate is None
    assert timeline_of(1).seconds == 0.0


class ClosedWork(SimpleNamespace):
    """Work that notes its end."""

    keys, is_closed = None, False

    def close(self) -> None:
        self.is_closed = True


def test_work_is_closed_whatever_ends_the_round():
    def refuse() -> None:
        raise UserError("no")

    for name in ("start", "deal_out"):
        pool, work = PlayedPool(), ClosedWork()
        setattr(pool, name, lambda *_: refuse())
        with pytest.raises(UserError):
            run_rounds(pool, [], lambda items: work, lambda: None, lambda *_: [], print)  # noqa: B023
        assert work.is_closed


def test_an_error_of_ray_is_not_its_own_cause(run, tmp_path):
    from ray.exceptions import RaySystemError

    def fail(report) -> None:
        raise RaySystemError("a class that is not there")

    with pytest.raises(RaySystemError) as failed:
        run(tmp_path, on_done=fail)
    assert failed.value.__cause__ is None


def blind_to_some(table):
    """A block of work items of which a host does not see every third file."""
    paths = [
        "/gone" if row % 3 == 0 else path
        for row, path in enumerate(table.column("path").to_pylist())
    ]
    place = table.column_names.index("path")
    return table.set_column(place, "path", pa.array(paths))


@pytest.mark.parametrize("supply", ["device", "cluster"])
def test_files_that_one_host_does_not_see_are_read_on_another(
    run, whole, tmp_path, monkeypatch, supply
):
    from cfdist.distributed import pool, work

    plain = work.letterbox

    class HalfBlindActor(pool.DeviceActor):
        def letterbox(self, items, size, threads):
            import ray

            table = pa.Table.from_pylist([vars(item) for item in items])
            if ray.get_runtime_context().get_actor_name() == "device:1":
                table = blind_to_some(table)
            return plain(table, size, threads)

    if supply == "device":
        monkeypatch.setattr(pool, "DeviceActor", HalfBlindActor)
    else:
        block = lambda table, size: plain(blind_to_some(table), size)  # noqa: E731
        monkeypatch.setattr(work, "letterbox", block)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    kept = KeptPictures("fingerprint", SIZE)
    try:
        outcome = run(tmp_path, supply=supply, kept=kept)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert same_files(tmp_path, whole[1])
    # A stage is no device's doing.
    blamed = {event.device for event in outcome.events}
    assert blamed == ({"device:1"} if supply == "device" else set())
    # Nothing that was made without its file is kept for the next run.
    assert len(kept.rows) == 40
    again = run(tmp_path / "again", kept=kept)
    assert again.evaluation.failures == ()
    assert sum(report.decoded for report in again.devices.values()) == 0

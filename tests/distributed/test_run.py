"""Rounds through real Ray actors: lost devices, resumed runs, sharing of work."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist import inputs
from cfdist.distributed import cluster
from cfdist.distributed.chunks import (
    MAX_CHUNK,
    Shares,
    Work,
    chunk_for_rate,
    chunk_of,
    largest_chunk,
)
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
        plan = cluster.plan_devices(
            "cpu", devices, feeders=1, streams=1, batch_pixels=4 * 256 * 256
        )
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
        cluster.plan_devices("npu", 2, feeders="auto", streams="auto", batch_pixels=1)
    with pytest.raises(UserError, match="devices=auto: Ray sees 0 GPU"):
        cluster.plan_devices("gpu", "auto", feeders="auto", streams="auto", batch_pixels=1)


def test_cores_are_shared_between_cpu_devices():
    import ray

    cores = int(ray.cluster_resources()["CPU"])
    one = cluster.plan_devices("cpu", 1, feeders="auto", streams="auto", batch_pixels=1)
    assert (one.count, one.threads, one.slots, one.feeders) == (1, cores, cores, cores)
    many = cluster.plan_devices("cpu", 2 * cores, feeders=3, streams=1, batch_pixels=1)
    assert (many.threads, many.slots, many.feeders, many.cpus) == (1, 1, 3, 0.5)
    listed = cluster.plan_devices("cpu", [0, 1, 2], feeders=1, streams=1, batch_pixels=1)
    assert listed.count == 3
    crowded = cluster.plan_devices("cpu", 1, feeders=1, streams="auto", batch_pixels=10**12)
    assert crowded.slots == 1


def test_the_steady_rate_leaves_out_each_lane_s_first_chunk():
    points = [(5.0, 8), (5.1, 16), (6.1, 24), (7.1, 32), (8.1, 40)]
    timeline = Timeline(lanes=2, started=0.0, points=points)
    assert timeline.steady_rate == pytest.approx(8.0)
    assert timeline.seconds == 8.1
    assert Timeline(lanes=2, points=points[:3]).steady_rate is None  # less than half
    assert Timeline(lanes=1, points=[(5.0, 8), (5.1, 32)]).steady_rate is None  # too short
    assert Timeline(lanes=1).seconds == 0.0


@pytest.mark.parametrize(
    ("items", "chunk", "lanes", "unit", "first", "expected"),
    [
        (100, 16, 2, 1, 16, [16, 16, 16, 13, 10, 8, 6, 4, 3, 2, 2, 1, 1, 1, 1]),
        (8, 8, 4, 1, 8, [1] * 8),
        (3, 8, 4, 1, 8, [1, 1, 1]),
        (40, 16, 1, 4, 16, [16, 12, 8, 4]),
        (40, 16, 2, 16, 16, [16, 16, 8]),
        (9, 16, 2, 4, 16, [4, 4, 1]),
        (48, 8, 2, 1, 2, [2, 2, 8, 8, 7, 6, 4, 3, 2, 2, 1, 1, 1, 1]),
    ],
)
def test_lanes_begin_and_end_with_small_chunks(items, chunk, lanes, unit, first, expected):
    work = Work([WorkItem(f"e/{i}", "", 0) for i in range(items)])
    shares = Shares(work, lanes, unit, first)
    chunks = []
    while found := shares.next_chunk(chunk):
        chunks.append(found)
    assert [len(one) for one in chunks] == expected
    assert [item.id for one in chunks for item in one] == [f"e/{i}" for i in range(items)]


@given(batch=st.integers(1, 200), group=st.integers(1, 4), rate=st.floats(0, 1e6, allow_nan=False))
def test_chunks_are_whole_batches_that_fit_the_buffers(batch, group, rate):
    chunk = chunk_of(batch, group)
    size = chunk_for_rate(chunk, rate)
    assert size % (batch * group) == 0 or size % batch == 0
    assert batch * group <= chunk <= size <= largest_chunk(chunk)
    assert chunk_for_rate(chunk, 0.0) == chunk
    assert largest_chunk(chunk) <= max(chunk, MAX_CHUNK)

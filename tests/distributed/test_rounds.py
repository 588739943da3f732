"""Rounds through real Ray actors: lost devices, resumed runs, faulty devices, every supply."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfdist import inputs
from cfdist.backends.model import BackendModel
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.rounds import EvaluationTask, Listener, evaluate_manifest
from cfdist.distributed.work import item_work, letterboxing_work, materialise
from cfdist.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_session")

SIZE = (256, 256)


@pytest.fixture(scope="module")
def run(compose, spec):
    """Evaluates the first 40 sample pictures at a small input size."""
    config = compose("dataset.limit=40")
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    model = spec(height=256, width=256, batch=4)

    def evaluate(
        output: Path,
        on_done=lambda report: None,
        supply: str = "device",
        passes: int = 1,
        backend: BackendModel | None = None,
    ):
        output.mkdir(exist_ok=True)
        make_work = item_work
        if supply == "cluster":
            make_work = lambda items: letterboxing_work(items, SIZE, 4)  # noqa: E731
        elif supply == "store":
            make_work = materialise(manifest.items, manifest.fingerprint, SIZE).work
        task = EvaluationTask(
            manifest.repeated(passes),
            truth,
            backend or BackendModel("openvino", model, {"precision": "f32"}),
            plan_devices("cpu", 2, readers=1, shares_cpus=supply == "cluster"),
            output,
            RunIdentity("f", "openvino"),
            "official",
            make_work,
        )
        return evaluate_manifest(task, Listener(lambda done: None, on_done))

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
        seen.append(len(report.keys))
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


@pytest.mark.parametrize(("supply", "passes"), [("cluster", 1), ("store", 1), ("store", 2)])
def test_pictures_letterboxed_elsewhere_give_the_same_bytes(run, whole, tmp_path, supply, passes):
    report = run(tmp_path, supply=supply, passes=passes)
    assert same_files(tmp_path, whole[1])
    assert report.timeline.points[-1][1] == 40 * passes
    assert sum(device.decoded for device in report.devices.values()) == 0


def test_an_interrupted_run_goes_on_with_pictures_of_the_store(run, whole, tmp_path):
    class InterruptError(Exception):
        pass

    seen = []

    def interrupt(report):
        seen.append(len(report.keys))
        if len(seen) == 2:
            raise InterruptError

    with pytest.raises(InterruptError):
        run(tmp_path, on_done=interrupt, supply="cluster")
    assert run(tmp_path, supply="store").resumed >= sum(seen)
    assert same_files(tmp_path / "predictions", whole[1] / "predictions")


@pytest.mark.parametrize("fault", ["nan", "inf", "inf_scores"])
def test_outputs_that_are_not_finite_fail_their_pictures(run, spec, tmp_path, fault):
    options = {"latency_ms": 5, "preset": None, "fault": fault, "fault_device": 1}
    faulty = BackendModel("simulated", spec(height=256, width=256, batch=4), options)
    report = run(tmp_path, backend=faulty)
    failures = dict(report.evaluation.failures)
    assert len(failures) == report.devices["device:1"].pictures > 0
    reason = "the model's outputs hold NaN or infinite values (device:1)"
    assert set(failures.values()) == {reason}
    files = {
        str(p.relative_to(tmp_path / "predictions").with_suffix(""))
        for p in (tmp_path / "predictions").rglob("*.txt")
    }
    assert len(files) == 40 - len(failures)
    assert files.isdisjoint(failures)


def test_a_store_too_small_for_two_blocks_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setattr("cfdist.distributed.work.store_bytes", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"where=cluster: Ray's object store has 1 MB, two blocks"):
        run(tmp_path, supply="cluster")

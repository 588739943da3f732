"""From a finished evaluation to results: figures, where pictures came from, notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cfdist.backends.model import BackendModel
from cfdist.devices.base import DeviceReport
from cfdist.distributed.events import Event
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.reducer import Evaluation
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask, Timeline
from cfdist.distributed.work import item_work
from cfdist.execution import PictureSupply
from cfdist.report.evaluation import evaluation_results
from cfdist.report.results import Phases
from cfdist.widerface.manifest import Manifest, WorkItem

AP = {
    "official": {"easy": 0.9, "medium": 0.8, "hard": 0.7},
    "guide": {"easy": 0.95, "medium": 0.85, "hard": 0.75},
}


@pytest.fixture
def results(compose, spec):
    """Results of ten pictures on two devices; keyword arguments change the report."""

    def make(
        *overrides: str,
        backend: str = "openvino",
        origin="device",
        passes: int = 1,
        damaged=(),
        **changes,
    ):
        config = compose(
            "dataset=wider_val", "dataset.root=r", "dataset.ground_truth=g", *overrides
        )
        manifest = Manifest(tuple(WorkItem(f"e/{i}", "", 1) for i in range(10)), 4, 2).repeated(
            passes
        )
        plan = DevicePlan("cpu", 2, 1, 1, 1, 1.0)
        model = BackendModel(backend, spec(), {})
        identity = RunIdentity("f", backend)
        task = EvaluationTask(manifest, {}, model, plan, Path(), identity, "official", item_work)
        timeline = Timeline(1, 0.0, [(1.0, 4), (4.0, 10)], {})
        devices = {
            "device:1": DeviceReport(4, 4, 1.0, [10.0, 20.0]),
            "device:0": DeviceReport(6, 6, 2.0, [10.0]),
        }
        evaluation = Evaluation(AP, (("e/3", "broken"),), damaged, 0.5, 1000)
        report = EvaluationReport(evaluation, devices, timeline, 0, (), 2.0)
        phases = Phases(0.0)
        phases.seconds = {"imports": 1.0, "ray": 2.0, "run": 4.5, "shut_down": 0.5}
        supply = PictureSupply(item_work, origin)
        return evaluation_results(config, task, replace(report, **changes), supply, phases)

    return make


def test_figures_of_a_run(results):
    found = results("eval=guide")
    assert list(found.ap) == ["guide", "official"]
    assert (found.total, found.done, found.exit_code) == (10, 9, 3)
    assert found.seconds["run"] == 4.0
    assert found.seconds["start_up"] == 3.0
    assert found.throughput["end_to_end"] == pytest.approx(10 / 8)
    assert [(one["name"], one["busy_share"]) for one in found.devices] == [
        ("device:0", 0.5),
        ("device:1", 0.25),
    ]
    assert found.extra["pictures_decoded"] == 10
    assert found.extra["cpu_ms_per_picture"] == pytest.approx(200)


@pytest.mark.parametrize(
    ("origin", "by_devices", "expected"), [("device", 5, 10), ("cluster", 3, 6), ("store", 0, 0)]
)
def test_decoded_pictures_are_counted_wherever_they_were_read(
    results, origin, by_devices, expected
):
    devices = {f"device:{i}": DeviceReport(5, by_devices) for i in range(2)}
    found = results(origin=origin, devices=devices)
    assert found.extra["pictures_decoded"] == expected
    assert found.extra["letterboxed"] == origin
    has_note = any("taken from Ray's object store" in note for note in found.notes)
    assert has_note == (expected < 10)


def test_a_simulated_run_has_no_ap(results):
    found = results(backend="simulated")
    assert (found.ap, found.model, found.expected, found.simulated) == ({}, None, None, True)


def test_notes_say_what_a_reader_should_know(results):
    notes = "\n".join(results(resumed=3, events=[Event("device_lost", "device:1 died")]).notes)
    for part in (
        "4 pictures of the ground truth are not in dataset.root",
        "2 pictures in dataset.root are not in the ground truth",
        "3 pictures were done by an earlier, interrupted run",
        "device:1 died",
        "failed pictures are left out of the AP",
    ):
        assert part in notes


def test_a_cluster_s_processor_time_is_not_known(results):
    assert results("cluster.address=auto").extra["cpu_ms_per_picture"] is None


def test_in_several_passes_notes_count_a_picture_in_each(results):
    devices = {"device:0": DeviceReport(20, 15)}
    notes = results(passes=2, resumed=2, devices=devices).notes
    each = "pictures, each counted in every pass, were"
    assert f"2 {each} done by an earlier, interrupted run" in notes
    assert any(note.startswith(f"5 {each} not decoded again") for note in notes)


def test_damaged_pictures_are_listed_and_noted(results):
    assert not any("damaged" in note for note in results().notes)
    damaged = (("e/3", "half"), ("e/4", "half"))
    failed, used = results(damaged=damaged), results("dataset.damaged=use", damaged=damaged[:1])
    assert failed.damaged == damaged
    assert failed.to_dict()["damaged"][1] == {"picture": "e/4", "reason": "half"}
    assert any(
        note.startswith("2 pictures have a damaged file and failed") for note in failed.notes
    )
    assert any(note.startswith("1 picture has a damaged file and is used") for note in used.notes)

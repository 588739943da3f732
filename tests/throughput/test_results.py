"""From figures to results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cfdist.backends.model import BackendModel
from cfdist.devices.base import DeviceReport
from cfdist.distributed.events import Event
from cfdist.distributed.journal import RunIdentity
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.reducer import Evaluation
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask, Timeline
from cfdist.distributed.work import item_work
from cfdist.report.results import Phases
from cfdist.throughput.host import Faults, HostRate
from cfdist.throughput.latency import Latencies
from cfdist.throughput.results import Figures, benchmark_results, latency_results
from cfdist.widerface.manifest import Manifest, WorkItem
from tests.throughput.recording import looped

MANIFEST = Manifest(tuple(WorkItem(f"e/{i}", f"{i}.jpg", 9) for i in range(4)), 0, 0)
HOST = [HostRate(1, 300, 70.0, 14.0)]
FAULTS = Faults((("e/3", "not a picture"),), (("e/2", "cut JPEG"),))


@pytest.fixture
def phases() -> Phases:
    """Ten seconds, of which the parts take six."""
    phases = Phases(0.0)
    phases.seconds = {
        "imports": 0.5, "checks": 0.5, "host": 2.0, "ray": 1.0, "inference": 1.0, "devices": 1.0,
        "run": 3.0, "shut_down": 1.0,
    }  # fmt: skip
    return phases


@pytest.fixture
def figures(spec) -> Figures:
    """All parts, on one device with two streams, in two passes over the pictures."""
    model = BackendModel("openvino", spec(batch=4))
    plan = DevicePlan("cpu", count=1, threads=2, streams=2, readers=1, cpus=2)
    passes = MANIFEST.repeated(2)
    timeline = Timeline(2, 0.0, [(2.0, 8)], {"device:0": [(2.0, 8)]})
    task = EvaluationTask(
        passes, {}, model, plan, Path(), RunIdentity("f" * 64, "openvino"), "official", item_work
    )
    report = EvaluationReport(
        Evaluation(
            {"official": {"easy": 0.5}}, (("e/2", "NaN"), ("e/3", "no picture")), (), 0.5, 0
        ),
        {"device:0": DeviceReport(pictures=8, decoded=8, busy_seconds=1.0)},
        timeline,
        resumed=0,
        events=[Event("device_lost", "device:0 died")],
        cpu_seconds=0.8,
    )
    loops = looped([1.0, 2.0], [2.0, 4.0])
    return Figures(model, MANIFEST, plan, HOST, FAULTS, {"device:0": loops}, (task, report))


def test_all_parts(compose, figures, phases):
    results = benchmark_results(compose("job=benchmark", "benchmark.loops=2"), figures, phases)
    assert (results.job, results.ap, results.passes) == ("benchmark", {}, None)
    # The host's reason and the run's are of one picture.
    assert (results.total, results.done) == (4, 2)
    assert results.failures == [("e/2", "NaN"), ("e/3", "no picture")]
    assert results.seconds == {
        "total": 10.0, "start_up": 3.0, "run": 2.0, "evaluation": 0.5, "shut_down": 1.0,
        "inference": 1.0, "host": 2.0,
    }  # fmt: skip
    assert results.fingerprint == "f" * 64
    section = results.extra["benchmark"]
    (device,) = section["inference"]["devices"]
    # Until 2 s: two batches of one stream, one of the other.
    assert device["pictures_per_second"] == section["inference"]["pictures_per_second"] == 6.0
    assert (device["streams"], device["device_ms"]) == (2, None)
    assert device["batch_ms"]["max"] == 2000
    assert section["host"] == [
        {"readers": 1, "pictures": 300, "pictures_per_second": 70.0, "cpu_ms_per_picture": 14.0}
    ]
    # Eight pictures in the seven seconds that are neither the host's nor the loops'.
    assert section["end_to_end"] == {
        "pictures": 8,
        "steady_pictures_per_second": None,
        "end_to_end_pictures_per_second": pytest.approx(8 / 7),
        "cpu_ms_per_picture": pytest.approx(100.0),
    }
    assert results.throughput == {
        "steady": None, "end_to_end": pytest.approx(8 / 7), "pure_inference": 6.0,
    }  # fmt: skip
    assert section["bound"]["bound_by"] == "devices"
    # Two cores: 1/6 s of inference and 7 ms of reading a picture.
    assert section["bound"]["shared_cores_pictures_per_second"] == pytest.approx(
        1 / (1 / 6 + 0.007)
    )
    notes = " ".join(results.notes)
    for words in (
        "repeated to make 300", "none of the host's rates", "too few pictures", "device:0 died",
    ):  # fmt: skip
        assert words in notes
    assert "AP" not in notes


def test_a_rate_of_a_single_batch_is_pointed_out(compose, figures, phases):
    words = "the rate of a single batch; raise benchmark.loops"
    for ends, is_noted in (([2.0], True), ([1.0, 2.0], False)):
        figures.loops = {"device:0": looped([1.0, 2.0], ends)}
        notes = " ".join(benchmark_results(compose("job=benchmark"), figures, phases).notes)
        assert (words in notes) == is_noted


def test_an_end_to_end_part_that_is_too_short_has_no_rate(compose, figures, phases):
    task, report = figures.end_to_end
    # Steady: eight further pictures in two seconds.
    steady = Timeline(1, 0.0, [(2.0, 8), (3.0, 12), (4.0, 16)],
                      {"device:0": [(2.0, 8), (3.0, 4), (4.0, 4)]})  # fmt: skip
    figures.end_to_end = (task, replace(report, timeline=steady))

    def measured(seconds: float):
        config = compose("job=benchmark", f"benchmark.min_seconds={seconds}", "dataset.repeat=2")
        results = benchmark_results(config, figures, phases)
        return results.throughput["steady"], " ".join(results.notes)

    rate, notes = measured(4)
    assert rate == pytest.approx(4.0) and "too short" not in notes
    rate, notes = measured(10)
    assert rate is None
    words = (
        "took 4 s, too short for a rate by benchmark.min_seconds=10; so long it takes with about"
    )
    assert f"{words} benchmark.pictures=10" in notes  # 8 * 10 / 4, in two passes


def test_an_end_to_end_part_of_which_every_picture_has_failed_has_no_rate(compose, figures, phases):
    task, report = figures.end_to_end
    failures = tuple((f"e/{i}", "no picture") for i in range(4))
    evaluation = replace(report.evaluation, failures=failures)
    figures.end_to_end = (task, replace(report, evaluation=evaluation))
    results = benchmark_results(compose("job=benchmark"), figures, phases)
    assert (results.throughput["steady"], results.throughput["end_to_end"]) == (None, None)
    assert "every picture of the end-to-end part has failed: it has no rate" in results.notes


def test_latencies_of_too_few_pictures_are_no_result(compose, phases, spec):
    model = BackendModel("openvino", spec(batch=1))
    config = compose("job=benchmark", "benchmark.scenario=single_stream", "dataset=wider_val")

    def measured(count: int):
        failures = (("e/3", "no picture"),)
        found = Latencies(np.full((count, 3), 10.0), count, 0.03 * count, failures, (), "CPU")
        return latency_results(config, model, MANIFEST, found, phases)

    results = measured(100)
    assert (results.total, results.done, results.exit_code) == (4, 3, 3)
    assert (results.notes, results.batch) == ([], 1)
    latency = results.extra["latency_ms"]
    assert list(latency) == ["whole", "reading", "inference", "finding faces"]
    assert (latency["whole"]["p99"], latency["inference"]["median"]) == (30.0, 10.0)
    assert results.extra["benchmark"]["scenario"] == "single_stream"

    results = measured(40)
    assert set(results.extra["latency_ms"].values()) == {None}
    assert measured(0).notes == ["every picture has failed: there is no latency"]
    (note,) = results.notes
    assert note == (
        "40 pictures in 1.2 s are too few for a 99th percentile, which takes 100, about 3 s: "
        "benchmark.pictures=100"
    )


def test_the_host_alone(compose, phases):
    figures = Figures(manifest=MANIFEST, host=HOST, faults=FAULTS)
    config = compose("job=benchmark", "dataset.damaged=use")
    results = benchmark_results(config, figures, phases)
    assert results.damaged == [("e/2", "cut JPEG")]
    assert "1 picture has a damaged file and is used as it decodes" in results.notes[-1]
    assert results.backend is results.model is results.batch is results.fingerprint is None
    assert results.throughput == {"steady": None, "end_to_end": None, "pure_inference": None}
    assert (results.total, results.done, results.devices) == (4, 3, [])
    assert results.seconds["run"] is results.seconds["evaluation"] is None
    section = results.extra["benchmark"]
    assert section["inference"] is section["end_to_end"] is section["bound"] is None
    assert section["host"][0]["readers"] == 1


def test_devices_that_compute_elsewhere_share_no_cores(compose, figures, phases, spec):
    options = {"latency_ms": 1.0, "preset": None}
    figures.model = BackendModel("simulated", spec(batch=4), options)
    figures.end_to_end = None
    results = benchmark_results(compose("job=benchmark", "backend=simulated"), figures, phases)
    assert results.simulated
    assert results.model is None
    assert results.backend == "simulated"
    assert results.extra["benchmark"]["bound"]["shared_cores_pictures_per_second"] is None
    assert results.extra["benchmark"]["end_to_end"] is None


def test_what_bounds_a_run(compose, figures, phases):
    rates = [HostRate(1, 300, 5.0, 14.0), HostRate(2, 300, 10.0, 14.0)]

    def bound(host: list[HostRate], readers: int):
        figures.host, figures.plan = host, replace(figures.plan, readers=readers)
        section = benchmark_results(compose("job=benchmark"), figures, phases).extra["benchmark"]
        assert section["bound"]["devices_pictures_per_second"] == 6.0
        names = ("bound_by", "host_pictures_per_second", "host_readers")
        return tuple(section["bound"][name] for name in names)

    assert bound(rates, readers=1) == ("host", 5.0, 1)
    assert bound(rates, readers=2) == ("devices", 10.0, 2)
    # Fewer readers than were measured: the fewest.
    assert bound(rates[1:], readers=1) == ("devices", 10.0, 2)

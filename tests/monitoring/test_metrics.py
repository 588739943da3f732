"""The metrics: their names, and that a Ray that takes none stops no run."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from cfdist.monitoring import metrics
from cfdist.monitoring.metrics import METRICS, Recorder, run_label
from tests.conftest import PROJECT

DASHBOARD = PROJECT / "deploy" / "grafana_dashboard.json"


def series() -> set[str]:
    """The names of all series that Prometheus gets."""
    names = set()
    for one in METRICS:
        ends = ("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",)
        names |= {one.exported + end for end in ends}
    return names


def test_the_page_has_each_metric_with_its_unit_and_labels():
    page = (PROJECT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| ([^|]*) \|", page, re.M)
    labels = [", ".join(one.labels) or "-" for one in METRICS]
    assert rows == [
        (one.exported, one.kind, one.unit, each) for one, each in zip(METRICS, labels, strict=True)
    ]


def test_the_dashboard_asks_for_series_that_there_are():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\bray_\w+", query)}
    assert asked <= series()
    # Each metric is in the dashboard.
    for one in METRICS:
        assert any(name.startswith(one.exported) for name in asked), one
    ids = Counter(panel["id"] for panel in dashboard["panels"])
    assert set(ids.values()) == {1}
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert all("$run" in target["expr"] for target in panel["targets"])


@pytest.mark.parametrize(
    ("folder", "label"),
    [("outputs/2026-01-01", "2026-01-01"), ("/x/sweep/3", "sweep/3"), ("out", "out")],
)
def test_a_run_is_named_by_its_folder(folder, label):
    assert run_label(folder) == label


@pytest.fixture
def made(monkeypatch):
    """Metrics that keep what is recorded, and that can break."""
    kept = SimpleNamespace(values=[], error=None, count=0)

    class Kept:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, how):
            def record(value, labels):
                if kept.error:
                    raise kept.error
                kept.values.append((self.name, how, value, labels))

            return record

    def make():
        kept.count += 1
        return {one.name: Kept(one.name) for one in METRICS}

    monkeypatch.setattr(metrics, "_make", make)
    monkeypatch.setattr(metrics, "_is_connected", lambda: True)
    monkeypatch.setattr(Recorder, "held_until", 0.0)  # a session that another test began
    return kept


def test_values_are_recorded_with_the_run(made):
    recorder = Recorder("run")
    recorder.count("cfdist_pictures_done", 2, {"device": "d", "host": "h"})
    recorder.count("cfdist_pictures_failed", 0, {"device": "d", "host": "h"})  # Ray refuses 0
    recorder.set("cfdist_pictures_wanted", 0, {})
    recorder.observe("cfdist_batch_seconds", [0.5], {"device": "d", "host": "h"})
    device = {"run": "run", "device": "d", "host": "h"}
    assert made.values == [
        ("cfdist_pictures_done", "inc", 2, device),
        ("cfdist_pictures_wanted", "set", 0, {"run": "run"}),
        ("cfdist_batch_seconds", "observe", 0.5, device),
    ]
    assert made.count == 1


def test_what_is_counted_before_the_agent_is_found_is_kept_back(made, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    Recorder.hold()
    first, second = Recorder("first"), Recorder("second")
    for recorder in (first, second):
        recorder.count("cfdist_pictures_done", 2, {"device": "d"})
        recorder.observe("cfdist_batch_seconds", iter([0.5]), {"device": "d"})
        recorder.set("cfdist_pictures_wanted", 9, {})
    assert [how for _, how, _, _ in made.values] == ["set", "set"]
    second.release()  # the run has ended
    assert [how for _, how, _, _ in made.values[2:]] == ["inc", "observe"]
    now[0] += 60
    first.set("cfdist_pictures_wanted", 9, {})
    first.count("cfdist_pictures_done", 1, {"device": "d"})
    found = [(how, value) for _, how, value, _ in made.values[4:]]
    assert found == [("inc", 2), ("observe", 0.5), ("set", 9), ("inc", 1)]


def test_a_fault_of_ray_is_logged_once_and_ends_the_metrics_alone(made, caplog):
    made.error = RuntimeError("no agent")
    recorder = Recorder("run")
    for _ in range(3):
        recorder.set("cfdist_pictures_wanted", 1, {})
    assert [record.message for record in caplog.records] == [
        "no metrics of this run: Ray does not take them"
    ]


def test_without_ray_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(metrics, "_make", lambda: pytest.fail("Ray is not there"))
    monkeypatch.setattr(metrics, "_is_connected", lambda: False)
    Recorder("run").set("cfdist_pictures_wanted", 1, {})
    Recorder(None).set("cfdist_pictures_wanted", 1, {})

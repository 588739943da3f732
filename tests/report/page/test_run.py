"""The page of a run, from results as `results.json` holds them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cfdist.devices.activity import ActivityRecord
from cfdist.devices.base import DeviceReport
from cfdist.distributed.events import Event
from cfdist.report.page.run import OwnParts, run_page, write_run_report
from cfdist.report.page.tables import Cell, Table
from cfdist.report.results import Results, device_entry
from tests.report.page.checks import checked

ACTIVITY = ActivityRecord(101.0, 0.5, [0.5, 0.25], [0.0, 0.25])


@pytest.fixture
def results(compose) -> Results:
    """Those of a simulated run in which a picture failed."""
    batches = [10.0] * 90 + [20.0] * 10
    return Results(
        job="evaluate",
        total=10,
        done=9,
        failures=[("e/<a>", "broken & gone")],
        damaged=[("e/b", "half")],
        throughput={"steady": None, "end_to_end": 12.5},
        seconds={"total": 4.0, "start_up": 1.0, "run": 2.0, "evaluation": 0.5, "shut_down": 0.25},
        devices=[
            device_entry("device:0", DeviceReport(9, 9, 1.0, batches, activity=ACTIVITY), 2, 100.0),
            device_entry("device:1", DeviceReport(chip="5"), 2.0, 100.0),
        ],
        backend="simulated",
        batch=4,
        simulated=True,
        config=compose().model_dump(),
        notes=["a <note>"],
        events=[Event("device_lost", "device:1 was lost", "device:1", "host", "5", "2026-01-01")],
    )


def test_a_page_without_ap_shows_speed_failures_and_settings(results):
    html = run_page(results.to_dict(), None, OwnParts())
    page = checked(html)
    assert "<note>" not in html
    assert "Simulated: no model ran" in html
    assert page.table("Devices")[1] == [
        "device:0", "", "-", "9", "50 %", "10.00", "10.00", "11.00", "20.00", "20.00", "-",
    ]  # fmt: skip
    assert page.table("Devices")[2][:4] == ["device:1 (chip 5)", "", "-", "0"]
    assert page.table("Pictures that failed")[1] == ["e/<a>", "broken & gone"]
    assert page.table("Damaged files")[1] == ["e/b", "half"]
    assert page.table("Events")[1][1:3] == ["device_lost", "device:1"]
    assert ["model.batch", "1"] in page.table("Settings")
    assert page.table("Where the wall time went")[-1] == ["all", "4.00 s", "100.0 %"]
    facts = dict(
        zip([text for _, text in page.all("dt")], [text for _, text in page.all("dd")], strict=True)
    )
    assert facts == {
        "pictures": "9 of 10",
        "pictures/s, end to end": "12.5",
        "devices": "2 x simulated",
        "batch": "4",
        "wall time": "4.0 s",
    }
    assert "1 of 10 pictures failed" in html
    assert "AP" not in [text for _, text in page.all("h2", "h3")]


def test_a_search_shows_results_and_no_batch_size_of_its_own(results):
    tuned = replace(results, job="tune")
    candidates = Table("Candidates", ["candidate"], [[Cell("batch 4")]])
    page = checked(run_page(tuned.to_dict(), None, OwnParts(tables=[candidates])))
    assert "batch" not in [text for _, text in page.all("dt")]
    titles = [text for _, text in page.all("h2")]
    assert titles[0] == "Results" and "Accuracy" not in titles


def test_the_timeline_is_that_of_the_devices_that_worked(results):
    html = run_page(results.to_dict(), None, OwnParts())
    assert "device:0: inferring in 38 % of the run" in html
    assert "device:1: inferring" not in html
    assert "1 more devices are in results.json" in html


def test_the_same_results_give_the_same_page(results):
    pages = {run_page(results.to_dict(), None, OwnParts()) for _ in range(2)}
    assert len(pages) == 1


def test_report_false_writes_nothing(results, tmp_path, capsys):
    write_run_report(replace(results, config=results.config | {"report": False}), tmp_path, None)
    assert [*tmp_path.iterdir()] == []
    assert capsys.readouterr().out == ""
    write_run_report(results, tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

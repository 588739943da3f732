"""What `job=benchmark` shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cfdist.report import screen
from cfdist.report.results import Results
from cfdist.throughput import tables

TIMES = {"min": 1.0, "mean": 2.0, "median": 3.25, "p99": 40.0, "max": 50.0}
BOUND = {
    "bound_by": "host",
    "devices_pictures_per_second": 812.34,
    "host_pictures_per_second": 140.04,
    "host_readers": 2,
    "shared_cores_pictures_per_second": None,
}


@pytest.fixture
def results() -> Results:
    """Figures of two devices."""
    devices = [
        {
            "name": f"device:{i}",
            "pictures": 50,
            "busy_share": 0.16,
            "batch_ms": TIMES,
            "device_ms": None,
        }
        for i in (0, 1)
    ]
    loops = [
        {
            "name": f"device:{i}",
            "streams": 1 + i,
            "pictures_per_second": 406.17,
            "batch_ms": TIMES,
            "device_ms": TIMES,
        }
        for i in (0, 1)
    ]
    section = {
        "inference": {
            "loops": 20, "input": "zeros", "pictures_per_second": 812.34, "devices": loops,
        },
        "host": [
            {"readers": 1, "pictures": 9, "pictures_per_second": 70.5, "cpu_ms_per_picture": 14.2},
            {"readers": 2, "pictures": 9, "pictures_per_second": 140.04, "cpu_ms_per_picture": 9.5},
        ],
        "end_to_end": {
            "pictures": 100,
            "steady_pictures_per_second": None,
            "end_to_end_pictures_per_second": 33.333,
            "cpu_ms_per_picture": None,
        },
        "bound": BOUND,
    }  # fmt: skip
    return Results(
        job="benchmark", ap={}, total=100, done=100, failures=[], seconds={}, config={},
        throughput={"steady": None, "end_to_end": 33.333, "pure_inference": 812.34},
        devices=devices, backend="om", batch=16, notes=["a note"],
        extra={"benchmark": section},
    )  # fmt: skip


def lines(capsys) -> dict[str, list[list[str]]]:
    """First word or words of each printed line -> the numbers behind them."""
    found: dict[str, list[list[str]]] = {}
    for line in capsys.readouterr().out.splitlines():
        label, _, rest = line.strip().partition("  ")
        found.setdefault(label, []).append(rest.split())
    return found


def test_each_figure_has_its_row(results, capsys):
    tables.print_benchmark(results)
    shown = lines(capsys)
    assert "benchmark: om, batch 16" in shown
    times = ["1.00", "2.00", "3.25", "40.0"]
    assert shown["device:0"] == [["406.2", *times, "3.25"], [*times, "16", "%"]]
    assert shown["device:1, 2 streams"] == [["406.2", *times, "3.25"]]
    assert shown["all devices"] == [["812.3"]]
    assert shown["1 reader"] == [["70.5", "14.2"]]
    assert shown["2 readers"] == [["140.0", "9.50"]]
    assert shown["steady"] == [["too", "short"]]
    assert shown["whole command"] == [["33.3"]]
    assert "note: a note" in shown
    assert "SIMULATED" not in str(shown)


def test_the_page_has_the_same_rows_and_what_bounds_the_run(results):
    (table,) = tables.benchmark_parts(results).tables
    bound = results.extra["benchmark"]["bound"]
    assert (tables.bound_sentence(bound, None, False) in table.caption) is bool(bound)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["host alone (reading): 2 readers"] == ["140.0", *["-"] * 5, "9.50", "-"]
    assert rows["end to end: device:0"][-1] == "16 %"
    assert rows["end to end: steady"][0] == "-"


def test_a_narrow_screen_breaks_no_number(results, capsys, monkeypatch):
    monkeypatch.setattr(screen.console, "_width", 40)
    tables.print_benchmark(results)
    assert lines(capsys)["2 readers"] == [["140.0", "9.50"]]


def test_parts_that_were_not_run_have_no_row(results, capsys):
    section = {"inference": None, "host": None, "end_to_end": None, "bound": None}
    section["host"] = results.extra["benchmark"]["host"]
    only_host = replace(results, backend=None, batch=None, extra={"benchmark": section})
    tables.print_benchmark(only_host)
    shown = lines(capsys)
    assert "benchmark: host" in shown
    assert "2 readers" in shown
    assert "device:0" not in shown
    assert "end to end" not in shown


def test_simulated_figures_say_so(results, capsys):
    tables.print_benchmark(replace(results, backend="simulated", simulated=True))
    shown = capsys.readouterr().out
    assert shown.startswith("SIMULATED: no model runs")
    assert "SIMULATED benchmark: simulated, batch 16" in shown
    assert "the simulated devices can take 812.3 pictures/s" in shown


def test_the_sentence_says_what_bounds_the_run():
    assert tables.bound_sentence(BOUND, 99.95, simulated=False) == (
        "the devices can take 812.3 pictures/s, this host can read 140.0 (2 readers): the host "
        "bounds the run; end to end it was 100.0"
    )
    shared = {
        "bound_by": "devices",
        "devices_pictures_per_second": 10.1,
        "host_pictures_per_second": 70.0,
        "host_readers": 1,
        "shared_cores_pictures_per_second": 9.4,
    }
    assert tables.bound_sentence(shared, None, simulated=True) == (
        "the simulated devices can take 10.1 pictures/s, this host can read 70.0 (1 reader): the "
        "devices bound the run; both use the same cores, which leaves about 9.4"
    )


def test_the_rate_by_the_devices_own_time_has_a_line(results, capsys):
    tables.print_benchmark(results)
    assert "own time" not in capsys.readouterr().out
    results.extra["benchmark"]["inference"]["device_time_pictures_per_second"] = 439.94
    tables.print_benchmark(results)
    assert (
        "by the devices' own time alone 439.9 pictures/s (1000 * batch" in capsys.readouterr().out
    )

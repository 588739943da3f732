"""Tables from the content of `results.json`."""

from __future__ import annotations

import pytest

from cfdist.report.page import tables
from cfdist.report.page.tables import Cell, Table
from cfdist.widerface.ground_truth import DIFFICULTIES


def test_figures_carry_the_number_they_are_sorted_by():
    assert tables.percent(0.12345) == Cell("12.35 %", 12.345)
    assert tables.percent(-1e-9).text == "0.00 %"
    assert tables.number(None) == Cell("-")
    assert tables.count(7) == Cell("7", 7)
    table = Table("c", ("a", "b"), [[tables.text("x"), tables.count(1)], [Cell("y"), Cell("-")]])
    assert [table.is_number(0), table.is_number(1)] == [False, True]
    assert Table("", ["rate"], [[Cell("5", 5)], [Cell("too short")]]).is_number(0)
    assert Table("", ["rate"], [[Cell("-")]]).is_number(0)


def results(**changes):
    ap = {"easy": 0.9, "medium": 0.8, "hard": 0.7}
    return {
        "ap": {"guide": ap, "official": ap},
        "pictures": {"done": 3226},
        "expected": {"protocol": "official", "ap": {"easy": 0.85}},
        "seconds": {
            "total": 10.0, "start_up": 3.0, "run": 5.0, "evaluation": 0.5, "shut_down": 1.0
        },
        "start_up_seconds": {"imports": 0.5, "checks": 0.5, "ray": 1.0, "devices": 1.0},
    } | changes  # fmt: skip


def test_expected_and_published_figures_stand_below_their_own_protocol():
    published = {"protocol": "guide", "easy": 0.9224, "medium": 0.9102, "hard": 0.7455}
    rows = [[cell.text for cell in row] for row in tables.ap_table(results(), published).rows]
    assert rows == [
        ["guide (IoU 0.4)", "90.00 %", "80.00 %", "70.00 %"],
        ["guide, published for the Ascend guide", "92.24 %", "91.02 %", "74.55 %"],
        ["official (IoU 0.5)", "90.00 %", "80.00 %", "70.00 %"],
        ["official, expected", "85.00 %", "-", "-"],
    ]
    assert len(tables.ap_table(results(expected=None), None).rows) == 2
    quirky = {"guide": results()["ap"]["guide"], "guide with x": dict.fromkeys(DIFFICULTIES, 0.5)}
    _, row = tables.ap_table(results(ap=quirky, expected=None), None).rows
    assert [cell.text for cell in row[:2]] == ["guide with x", "50.00 % -40.00"]


def test_the_parts_of_the_time_make_the_whole():
    parts = tables.time_parts(results())
    assert sum(parts.values()) == pytest.approx(10.0)
    assert parts["start of Ray"] == 1.0
    assert parts["other"] == pytest.approx(0.5)
    short = results(start_up_seconds=None, seconds={"total": 2.0, "start_up": 0.5, "run": 1.5})
    assert tables.time_parts(short) == {"start-up": 0.5, "run": 1.5}


def test_long_lists_are_cut_and_say_so():
    listed = [{"picture": f"e/{i}", "reason": "broken"} for i in range(5)]
    table = tables.reasons("Failed", listed, 3)
    assert (len(table.rows), table.caption) == (
        3, "Failed (the first 3 of 5; results.json has all)",
    )  # fmt: skip
    assert tables.reasons("Failed", [], 3) is None
    assert tables.event_table([], 3) is None


def test_settings_are_named_as_they_are_typed():
    mapping = {"trt_fp16_enable": True}
    values = {"job": "score", "model": {"batch": 4, "weights": {"path": None}}}
    table = tables.settings(values | {"backend": {"provider_options": mapping}})
    assert {name.text: value.text for name, value in table.rows} == {
        "job": "score",
        "model.batch": "4",
        "model.weights.path": "null",
        "backend.provider_options": "{trt_fp16_enable: true}",
    }

"""Charts: places on axes, escaping, and bins of a device's row."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.report.page import charts
from cfdist.report.page.charts import FRACTION, Axis


@given(st.floats(1e-3, 1e7))
def test_ticks_are_round_few_and_reach_the_highest(highest):
    ticks = charts.ticks_to(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest * (1 - 1e-8)
    assert 4 <= len(ticks) <= 8


def test_places_on_axes():
    assert Axis("", FRACTION).place(0.25) == 0.25
    log = Axis("", (1, 2, 4, 16), is_log=True)
    assert [log.place(value) for value in (1, 4, 16)] == [0.0, 0.5, 1.0]
    assert Axis("", (3,)).place(3) == 0.5
    assert Axis("", FRACTION).place(7) == 1.0


def test_a_line_chart_names_its_lines_and_draws_its_points():
    chart = charts.line_chart(
        "x over <y>", {"a & b": [(0, 0), (1, 1)], "c": [(0.5, 1)]}, Axis("x", FRACTION),
        Axis("y", FRACTION), has_dots=True,
    )  # fmt: skip
    assert 'aria-label="x over &lt;y&gt;"' in chart
    assert "a &amp; b</li>" in chart
    assert chart.count("<circle") == 3
    assert 'points="52.0,236.0 448.0,10.0"' in chart


def test_bars_stand_on_the_axis():
    chart = charts.bar_chart("b", {"1": 0.0, "2": 1.0}, "x", Axis("y", FRACTION))
    heights = [float(h) for h in re.findall(r'class="bar s0".*?height="([\d.]+)"', chart)]
    assert heights == [0.0, 226.0]


def test_a_row_has_a_bar_for_each_bin_and_reading_stands_on_inferring():
    line = {"start": 1.0, "bin_seconds": 0.5, "inferring": [1.0, 0.5, 0.0], "reading": [0, 0.5, 0]}
    drawn = charts.device_rows("t", [{"name": "device:<0>", "timeline": line}], seconds=3.0)
    inferring = re.search(r'class="inferring" d="(.*?)"', drawn)[1]
    assert inferring == "M200.0 0.0h100.00v24.0h-100.00zM300.0 12.0h100.00v12.0h-100.00z"
    assert re.search(r'class="reading" d="(.*?)"', drawn)[1] == "M300.0 0.0h100.00v12.0h-100.00z"
    assert "device:&lt;0&gt;: inferring in 25 % of the run" in drawn
    assert "<span>3.0</span>" in drawn


def test_parts_fill_the_bar():
    drawn = charts.share_bar("time", {"a": 1.0, "b": 3.0})
    widths = [float(w) for w in re.findall(r'x="[\d.]+" width="([\d.]+)"', drawn)]
    assert widths == pytest.approx([150, 450])

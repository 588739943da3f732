"""What is drawn, over what, and that it is a picture."""

from __future__ import annotations

import cv2
import pytest

from cfdist.report import plots
from cfdist.report.sweep import Row


def row(number: int, steady: float | None, batch: int | None = 4, **changes) -> Row:
    values = {"swept": {"model.batch": str(batch)}, "exit_code": 0, "reason": None} | changes
    return Row(member=number, batch=batch, steady=steady, **values)


@pytest.mark.parametrize(
    ("swept", "axis"),
    [
        ({"model.batch": "4"}, "model.batch"),
        ({"devices": "2", "model.batch": "4"}, "model.batch"),
        ({"devices": "2"}, "devices"),
        ({}, "model.batch"),
    ],
)
def test_the_axis_is_the_batch_size_if_it_is_swept(swept, axis):
    assert plots.x_axis([row(0, 1.0, swept=swept)]) == axis


def test_a_line_for_each_setting_of_the_other_keys_in_the_axis_order():
    rows = [
        row(n, steady, batch, swept={"model.batch": str(batch), "devices": devices})
        for n, (batch, devices, steady) in enumerate(
            [(8, "1", 3.0), (1, "1", 2.0), (8, "2", 6.0), (1, "2", None)]
        )
    ]
    assert plots.lines_of(rows, "model.batch") == {
        "devices=1, steady": [(1.0, 2.0), (8.0, 3.0)],
        "devices=2, steady": [(8.0, 6.0)],
    }


def test_pure_inference_and_simulated_runs_say_so():
    rows = [row(0, 3.0, pure_inference=9.0, host=400.0, simulated=True)]
    assert plots.lines_of(rows, "model.batch") == {
        "steady (simulated)": [(4.0, 3.0)],
        "pure inference (simulated)": [(4.0, 9.0)],
        "host alone": [(4.0, 400.0)],
    }


def test_runs_too_short_for_a_steady_rate_are_drawn_without_their_start():
    rows = [row(0, None, end_to_end=1.0, run_rate=8.0, host=400.0)]
    assert plots.lines_of(rows, "model.batch") == {
        "first to last picture": [(4.0, 8.0)],
        "host alone": [(4.0, 400.0)],
    }
    steady = [*rows, row(1, 9.0, 8, run_rate=8.5)]
    assert "first to last picture" not in plots.lines_of(steady, "model.batch")


def test_values_that_are_not_all_numbers_stay_text_in_the_order_given():
    rows = [row(n, 1.0 + n, swept={"model.nms": value}) for n, value in enumerate(["null", "0.3"])]
    assert plots.lines_of(rows, "model.nms") == {"steady": [("null", 1.0), ("0.3", 2.0)]}


@pytest.mark.parametrize(
    ("rows", "published"),
    [
        ([row(0, 9.0, 1), row(1, 10.0, 32)], {1: 439.9, 32: 371.8}),
        ([row(0, 300.0, 1), row(1, None, None)], {1: 439.9, 32: 371.8}),
        ([row(0, 9.0, swept={"backend": "torch"}), row(1, 8.0, swept={"backend": "openvino"})], {}),
        ([row(0, 9.0, swept={})], {4: 412.4}),
    ],
)
def test_the_plot_is_a_legible_picture(rows, published, tmp_path):
    path = tmp_path / "throughput.png"
    assert plots.throughput(rows, published, path)
    picture = cv2.imread(str(path))
    assert picture.shape == (600, 960, 3)
    assert 0.005 < (picture < 128).any(axis=2).mean() < 0.2  # ink on white
    assert [path.name for path in tmp_path.iterdir()] == ["throughput.png"]


def test_without_a_rate_nothing_is_drawn(tmp_path):
    assert not plots.throughput([row(0, None)], {4: 412.4}, tmp_path / "throughput.png")
    assert list(tmp_path.iterdir()) == []

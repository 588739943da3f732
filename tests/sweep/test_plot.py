"""What is drawn, over what, and that it is a picture."""

from __future__ import annotations

from dataclasses import replace

import cv2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.sweep import plot
from cfdist.sweep.runs import RunSummary


def run_of(number: int, batch: int | None = 4, swept=None, **changes) -> RunSummary:
    """A run with a steady rate of its number and one, unless `figures` says otherwise."""
    figures = {"steady_pictures_per_s": number + 1.0} | changes.pop("figures", {})
    known = {"batch": batch} | figures
    return RunSummary(
        number,
        {"model.batch": str(batch)} if swept is None else swept,
        exit_code=0,
        reason=None,
        figures={name: value for name, value in known.items() if value is not None},
        **changes,
    )


NOT_STEADY = {"steady_pictures_per_s": None}


@pytest.mark.parametrize(
    ("swept", "axis"),
    [
        (["model.batch"], "model.batch"),
        (["devices", "model.batch"], "model.batch"),
        (["devices"], "devices"),
        ([], "model.batch"),
    ],
)
def test_the_axis_is_the_batch_size_if_it_is_swept(swept, axis):
    same = {"dataset": "wider_val", "devices": "4", "model.batch": "4"}
    runs = [run_of(n, swept=same | dict.fromkeys(swept, str(n))) for n in (1, 2)]
    assert plot.x_axis(runs) == axis


def test_a_line_for_each_setting_of_the_other_keys_in_the_axis_order():
    runs = [
        run_of(
            n,
            batch,
            swept={"model.batch": str(batch), "devices": devices},
            figures={"steady_pictures_per_s": steady},
        )
        for n, (batch, devices, steady) in enumerate(
            [(8, "1", 3.0), (1, "1", 2.0), (8, "2", 6.0), (1, "2", None)]
        )
    ]
    assert plot.lines_of(runs, "model.batch") == {
        "devices=1, steady": [(1.0, 2.0), (8.0, 3.0)],
        "devices=2, steady": [(8.0, 6.0)],
    }


def test_pure_inference_and_simulated_runs_say_so():
    figures = {"pure_inference_pictures_per_s": 9.0, "host_pictures_per_s": 400.0}
    runs = [run_of(0, figures=figures, simulated=True)]
    assert plot.lines_of(runs, "model.batch") == {
        "steady (simulated)": [(4.0, 1.0)],
        "pure inference (simulated)": [(4.0, 9.0)],
        "host alone": [(4.0, 400.0)],
    }


def test_runs_too_short_for_a_steady_rate_are_drawn_without_their_start():
    figures = NOT_STEADY | {
        "end_to_end_pictures_per_s": 1.0,
        "first_to_last_pictures_per_s": 8.0,
        "host_pictures_per_s": 400.0,
    }
    runs = [run_of(0, figures=figures)]
    assert plot.lines_of(runs, "model.batch") == {
        "first to last picture": [(4.0, 8.0)],
        "host alone": [(4.0, 400.0)],
    }
    steady = [*runs, run_of(1, 8, figures={"first_to_last_pictures_per_s": 8.5})]
    assert "first to last picture" not in plot.lines_of(steady, "model.batch")


def test_values_that_are_not_all_numbers_stay_text_in_the_order_given():
    runs = [run_of(n, swept={"model.nms": value}) for n, value in enumerate(["null", "0.3"])]
    assert plot.lines_of(runs, "model.nms") == {"steady": [("null", 1.0), ("0.3", 2.0)]}


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.permutations(range(6)))
def test_a_line_has_a_point_for_each_run_in_the_axis_order(batches, order):
    runs = [run_of(n, batch) for n, batch in zip(order, batches, strict=False)]
    (points,) = plot.lines_of(runs, "model.batch").values()
    assert points == sorted(points)
    expected = [(batch, n + 1) for n, batch in zip(order, batches, strict=False)]
    assert sorted(points) == sorted(expected)


PUBLISHED = {"published_images_per_s": 371.8}


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs",
    [
        [run_of(299, 1), run_of(9, 32, figures=PUBLISHED), run_of(1, None, figures=NOT_STEADY)],
        [run_of(8, swept={"backend": "torch"}), run_of(7, swept={}, figures=PUBLISHED)],
        [run_of(8, origin={"data_set": "wider_val", "host": "h" * 200, "cpu": "a $ or _two_ $"})],
    ],
)
def test_the_plot_is_a_legible_picture(runs, tmp_path):
    path = tmp_path / "throughput.png"
    assert plot.draw_throughput(runs, path)
    picture = cv2.imread(str(path))
    assert picture.shape == (600, 960, 3)
    assert 0.005 < (picture < 128).any(axis=2).mean() < 0.2  # ink on white
    assert [path.name for path in tmp_path.iterdir()] == ["throughput.png"]


def test_the_picture_says_what_was_measured_where_and_when():
    origin = {"data_set": "wider_val", "pictures": "610", "host": "h" * 60, "cpu": "c$1" * 40,
              "date": "2026-03-01", "commit": "a" * 40}  # fmt: skip
    lines = plot.footer([run_of(0, origin=origin)]).splitlines()
    assert len(lines) == 3
    assert max(len(line.replace("\\", "")) for line in lines) <= plot.FOOTER_WIDTH
    text = " ".join(lines)
    for part in ("data set: wider_val; pictures: 610", "date: 2026-03-01", "a" * 40, r"c\$1"):
        assert part in text
    assert plot.footer([run_of(0)]) == ""


def test_what_is_not_drawn_has_failed_only_if_it_has_no_figures():
    short = replace(run_of(0, 1, figures=NOT_STEADY), exit_code=5)
    failed = replace(run_of(1, 8), exit_code=4, figures={})
    left_out = "model.batch=1 (too short for a rate), model.batch=8 (failed)"
    assert plot.undrawn([short, failed, run_of(2, 16)]) == left_out


def test_without_a_rate_nothing_is_drawn(tmp_path):
    runs = [run_of(0, figures=NOT_STEADY | PUBLISHED)]
    assert not plot.draw_throughput(runs, tmp_path / "throughput.png")
    assert list(tmp_path.iterdir()) == []

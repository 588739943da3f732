"""A sweep's summary: figures side by side, in CSV, Markdown and on the screen."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.report import sweep
from cfdist.report.sweep import Member, Row

AP = {
    "guide": {"easy": 0.9552, "medium": 0.9405, "hard": 0.7111},
    "official": {"easy": 0.94, "medium": 0.9231, "hard": 0.6527},
}


def results_of(batch: int = 4, **changes) -> dict:
    """What `results.json` of a run on two devices holds, as far as a summary reads it."""
    return {
        "ap": AP,
        "pictures": {"total": 610, "done": 610, "failed": 0},
        "failures": [],
        "throughput": {"steady": 100.0 + batch, "end_to_end": 50.0},
        "seconds": {"total": 12.2, "run": 6.1},
        "devices": [
            {"name": "device:0", "pictures": 300, "busy_share": 0.8, "batch_ms": {"median": 10.0}},
            {"name": "device:1", "pictures": 300, "busy_share": 0.6, "batch_ms": {"median": 30.0}},
            {"name": "device:2", "pictures": 10, "busy_share": 0.1, "batch_ms": None},
        ],
        "backend": "openvino",
        "batch": batch,
        "simulated": False,
        "config": {
            "eval": {"protocol": "guide", "gate": False},
            "model": {"height": 800, "width": 800},
        },
        "notes": ["a note"],
        "expected": None,
    } | changes


def members_of(*batches: int, **changes) -> list[Member]:
    """Members that differ in model.batch."""
    return [
        Member(
            number,
            {"dataset": "wider_val", "model.batch": str(batch)},
            0,
            None,
            results_of(batch, **changes),
        )
        for number, batch in enumerate(batches)
    ]


FAILED = Member(1, {"dataset": "wider_val", "model.batch": "0"}, 2, "model.batch=0: no", None)


def table_of(rows: list[Row]) -> list[dict[str, str]]:
    text = sweep.csv_text(rows, sweep.published_table())
    return list(csv.DictReader(io.StringIO(text)))


def test_the_published_table_is_the_guide_s():
    published = sweep.published_table()
    assert published.rates == {
        1: 439.9085, 4: 412.4094, 8: 375.9275, 16: 369.6435, 32: 371.7701,
    }  # fmt: skip
    assert published.ap == {"easy": 0.9224, "medium": 0.9102, "hard": 0.7455}
    assert published.protocol == "guide"


def test_rows_hold_what_differs_and_the_figures():
    first, failed = sweep.rows_of([*members_of(4), FAILED])
    assert first.swept == {"model.batch": "4"}
    assert first.ap == AP["guide"]
    assert (first.steady, first.end_to_end, first.seconds) == (104.0, 50.0, 12.2)
    assert first.run_rate == pytest.approx(100.0)
    assert first.batch_ms == 20.0  # of the devices that ran a full batch
    assert first.busy_share == pytest.approx(0.5)
    assert first.devices == 3
    assert first.state == "done"
    assert failed.swept == {"model.batch": "0"}
    assert (failed.state, failed.reason, failed.steady) == ("failed (2)", "model.batch=0: no", None)
    assert failed.title == "1 (model.batch=0)"


def test_jobs_without_devices_or_rates_have_no_figures_of_them():
    (row,) = sweep.rows_of(members_of(4, throughput=None, devices=[], backend=None))
    figures = (row.steady, row.end_to_end, row.pure_inference, row.batch_ms, row.busy_share)
    assert figures == (None,) * 5
    assert row.devices is None
    assert row.swept == {}


def test_where_only_the_inference_was_measured_its_devices_count():
    inference = {
        "devices": [
            {"name": "device:0", "slots": 1, "batch_ms": {"median": 10.0}, "device_ms": None},
            {"name": "device:1", "slots": 1, "batch_ms": {"median": 30.0}, "device_ms": None},
        ]
    }
    (row,) = sweep.rows_of(members_of(4, devices=[], benchmark={"inference": inference}))
    assert (row.devices, row.batch_ms, row.busy_share) == (2, 20.0, None)

    # Those of a whole run, which the rates beside are of, come first.
    (row,) = sweep.rows_of(members_of(4, benchmark={"inference": inference}))
    assert row.devices == 3
    (row,) = sweep.rows_of(members_of(4, devices=[], benchmark={"inference": None}))
    assert (row.devices, row.batch_ms) == (None, None)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, 0, None),
        ({"failures": [{"picture": "a/b", "reason": "broken"}]}, 3, "1 of 610 pictures failed"),
        (
            {
                "expected": {"met": False},
                "config": {"eval": {"protocol": "guide", "gate": True}},
            },
            5,
            "model.expected",
        ),
        ({"expected": {"met": False}}, 0, None),
        ({"comparison": {"within_tolerance": False}}, 4, "too far apart"),
        ({"comparison": {"within_tolerance": True}}, 0, None),
    ],
)
def test_the_verdict_is_that_of_the_job(changes, code, words):
    found, reason = sweep.verdict(results_of(**changes))
    assert found == code
    assert reason is None if words is None else words in reason


def test_csv_holds_raw_figures_and_the_published_ones():
    one, zero, odd = table_of(sweep.rows_of([*members_of(4), FAILED, *members_of(5)]))
    assert list(one)[:5] == ["member", "model.batch", "state", "exit_code", "reason"]
    assert one["simulated"] == "false"
    assert float(one["ap_hard"]) == 0.7111
    assert float(one["steady_pictures_per_s"]) == 104.0
    assert one["pure_inference_pictures_per_s"] == ""
    assert float(one["published_images_per_s"]) == 412.4094
    assert float(one["published_ap_easy"]) == 0.9224
    assert (zero["state"], zero["exit_code"], zero["reason"]) == ("failed", "2", FAILED.reason)
    assert zero["ap_easy"] == zero["published_images_per_s"] == ""
    assert odd["published_images_per_s"] == odd["published_ap_easy"] == ""


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1))
def test_csv_gives_any_value_and_reason_back(text):
    members = [
        Member(0, {"dataset.root": text}, 2, text, None),
        Member(1, {"dataset.root": text + "x"}, 2, text, None),
    ]
    first, second = table_of(sweep.rows_of(members))
    assert (first["dataset.root"], first["reason"]) == (text, text)
    assert second["dataset.root"] == text + "x"


def test_markdown_has_the_published_table_s_shape():
    rows = sweep.rows_of([*members_of(4), FAILED])
    page = sweep.markdown(rows, sweep.published_table(), "throughput.png")
    assert page.startswith("# Sweep of model.batch\n")
    assert (
        "| batch | easy | medium | hard | pictures/s, steady | published easy | published medium "
        "| published hard | published images/s |" in page
    )
    assert "| 4 | 95.52 | 94.05 | 71.11 | 104.0 | 92.24 | 91.02 | 74.55 | 412.4 |" in page
    assert "| 0 | - | - | - | - | - | - | - | - |" in page
    for words in ("one Ascend 310P3", "CANN 6.0.RC1", "800x800", "pure inference", "other weights"):
        assert words in page
    assert "cannot be compared" not in page
    assert "- failed: run 1 (model.batch=0): model.batch=0: no" in page
    assert "![pictures a second](throughput.png)" in page
    assert "Note: a note." in page
    assert "Simulated" not in page


def test_markdown_warns_of_another_protocol_and_keeps_other_inputs_apart():
    official = {
        "config": results_of()["config"] | {"eval": {"protocol": "official", "gate": False}}
    }
    page = sweep.markdown(
        sweep.rows_of(members_of(1, 4, **official)), sweep.published_table(), None
    )
    assert "| 4 | 94.00 | 92.31 | 65.27 |" in page
    assert "cannot be compared" in page
    assert "throughput.png" not in page

    small = {"config": results_of()["config"] | {"model": {"height": 256, "width": 256}}}
    page = sweep.markdown(sweep.rows_of(members_of(1, 4, **small)), sweep.published_table(), None)
    assert "published" not in page


def test_simulated_runs_are_marked_and_have_no_ap(capsys):
    rows = sweep.rows_of(members_of(1, 4, ap={}, simulated=True, backend="simulated"))
    page = sweep.markdown(rows, sweep.published_table(), None)
    assert "**Simulated**" in page
    assert "| 4 | - | - | - | 104.0 (simulated) | 92.24 |" in page
    assert [record["simulated"] for record in table_of(rows)] == ["true", "true"]
    sweep.print_rows(rows)
    shown = capsys.readouterr().out
    assert "SIMULATED" in shown
    assert shown.count("simulated") == 2
    assert "AP" not in shown


def test_a_sweep_of_which_a_part_is_simulated_says_so(capsys):
    real, simulated = members_of(1)[0], members_of(4, simulated=True, ap={})[0]
    sweep.print_rows(sweep.rows_of([real, simulated, FAILED]))
    assert "sweep of 3 runs, some SIMULATED" in capsys.readouterr().out
    sweep.print_rows(sweep.rows_of([simulated, FAILED]))
    assert "sweep of 2 runs, SIMULATED" in capsys.readouterr().out


def test_the_host_s_rate_has_a_column_where_a_run_knows_it(capsys):
    rates = [{"pictures_per_second": 250.4}, {"pictures_per_second": 609.7}]
    benchmark = {"inference": None, "host": rates}
    rows = sweep.rows_of(members_of(1, devices=[], throughput=None, benchmark=benchmark))
    assert (rows[0].host, rows[0].run_rate) == (609.7, None)
    page = sweep.markdown(rows, sweep.published_table(), None)
    assert "| pictures/s, host alone |" in page
    assert "| 609.7 |" in page
    assert table_of(rows)[0]["host_pictures_per_s"] == "609.7"
    sweep.print_rows(rows)
    assert "609.7" in capsys.readouterr().out


def test_pure_inference_has_a_column_where_a_run_knows_it(capsys):
    rates = {"steady": None, "end_to_end": 10.0, "pure_inference": 420.5}
    rows = sweep.rows_of(members_of(1, 4, throughput=rates))
    assert "pictures/s, pure inference" in sweep.markdown(rows, sweep.published_table(), None)
    sweep.print_rows(rows)
    shown = capsys.readouterr().out
    assert shown.count("420.5") == 2
    assert "without a steady rate" in shown


def test_the_screen_shows_every_figure_whole(capsys):
    rows = sweep.rows_of(
        [
            *members_of(1, 4),
            Member(2, {"dataset": "wider_val", "model.batch": "[x]"}, 2, "no", None),
        ]
    )
    sweep.print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    assert "sweep of 3 runs; rates in pictures/s; AP in %, guide (IoU 0.4)" in lines[0]
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    last = next(line for line in lines if line.startswith("4"))
    assert last.split() == [
        "4",
        "done",
        "95.52",
        "94.05",
        "71.11",
        "104.0",
        "50.0",
        "20.0",
        "50",
        "12.2",
    ]
    assert any(line.startswith("[x]") and "failed (2)" in line for line in lines)
    assert "failed: run 2 (model.batch=[x]): no" in lines


def test_columns_are_named_by_their_keys_last_part_where_that_is_clear(capsys):
    overrides = [
        {"preprocess.input": "f32", "export.input": "u8"},
        {"preprocess.input": "u8", "export.input": "f32"},
    ]
    members = [Member(n, one, 0, None, results_of()) for n, one in enumerate(overrides)]
    sweep.print_rows(sweep.rows_of(members))
    shown = capsys.readouterr().out
    assert "preprocess.input" in shown
    assert "export.input" in shown

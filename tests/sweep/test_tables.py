"""A sweep's summary: figures side by side, in CSV, Markdown and on the screen."""

from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from cfdist.sweep import plot, tables
from cfdist.sweep.runs import RunSummary, summarise_run
from tests.sweep.results import FAILED, results_of, runs_of


def table_of(runs: list[RunSummary]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tables.csv_text(runs))))


def test_csv_holds_raw_figures_and_the_published_ones():
    one, zero, odd = table_of([*runs_of(4), FAILED, *runs_of(5)])
    assert list(one)[:5] == ["run", "model.batch", "state", "exit_code", "reason"]
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
    runs = [
        summarise_run(0, {"dataset.root": text}, 2, text, None),
        summarise_run(1, {"dataset.root": text + "x"}, 2, text, None),
    ]
    first, second = table_of(runs)
    assert (first["dataset.root"], first["reason"]) == (text, text)
    assert second["dataset.root"] == text + "x"


def test_markdown_has_the_published_table_s_shape():
    runs = [*runs_of(4), FAILED]
    page = tables.markdown(runs, "throughput.png")
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


def test_markdown_keeps_other_protocols_and_inputs_apart():
    config = results_of()["config"]
    official = {"config": config | {"eval": {"protocol": "official", "gate": False}}}
    page = tables.markdown(runs_of(1, 4, **official), None)
    assert "| 4 | 94.00 | 92.31 | 65.27 |" in page
    assert "published" not in page
    assert "throughput.png" not in page

    page = tables.markdown([*runs_of(1), *runs_of(4, **official)], None)
    assert "cannot be compared" in page
    assert "| 4 | 94.00 | 92.31 | 65.27 | 104.0 | - | - | - | - |" in page

    small = {"config": config | {"model": {"height": 256, "width": 256}}}
    page = tables.markdown(runs_of(1, 4, **small), None)
    assert "published" not in page


def test_the_page_and_the_table_say_what_was_measured_where_and_when():
    page = tables.markdown(runs_of(1, 4), None)
    for line in (
        "- data set: wider_val",
        "- pictures: 3226",
        "- host: lab3",
        "- processor: Kunpeng 920, 48 cores",
        "- date: 2026-03-01T10:00:00+01:00",
        "- commit: abc123",
    ):
        assert f"{line}\n" in page
    (record,) = table_of(runs_of(4))
    assert (record["data_set"], record["pictures"]) == ("wider_val", "3226")
    assert (record["host"], record["commit"]) == ("lab3", "abc123")


def test_wherever_an_ap_stands_it_says_how_the_pictures_were_tested(capsys):
    runs = [
        summarise_run(n, {"model.nms": f"0.{n}"}, 0, None, results_of(4, test=f"IoU 0.{n}"))
        for n in (1, 2)
    ]
    tables.print_runs(runs)
    for text in (tables.markdown(runs, None), capsys.readouterr().out):
        assert "test of run 1: IoU 0.1\n" in text and "test of run 2: IoU 0.2\n" in text
        assert "the runs differ" not in text
    assert [record["test"] for record in table_of(runs)] == ["IoU 0.1", "IoU 0.2"]
    assert "test" not in plot.footer(runs) and "test: IoU 0.1" in " ".join(
        plot.footer(runs[:1]).split()
    )


def test_runs_that_are_not_alike_are_named(capsys):
    other = {"provenance": results_of()["provenance"] | {"pictures": 610, "commit": "def456"}}
    runs = [*runs_of(1), *runs_of(4, **other)]
    words = "the runs differ in pictures and commit as well; compare them with care"
    assert words in tables.markdown(runs, None)
    tables.print_runs(runs)
    assert words in capsys.readouterr().out

    # Who sweeps the pictures knows that they differ; a date is never the same.
    meant = {"provenance": results_of()["provenance"] | {"pictures": 610, "date": "2026-04-01"}}
    runs = [
        summarise_run(n, {"dataset.limit": str(n)}, 0, None, one)
        for n, one in enumerate([results_of(), results_of() | meant])
    ]
    assert "the runs differ" not in tables.markdown(runs, None)


def test_a_run_without_a_steady_rate_says_why(capsys):
    runs = runs_of(1, 4, throughput={"steady": None, "end_to_end": 10.0})
    assert "| 4 | 95.52 | 94.05 | 71.11 | too short |" in tables.markdown(runs, None)
    assert [record["steady_pictures_per_s"] for record in table_of(runs)] == ["", ""]
    tables.print_runs(runs)
    assert capsys.readouterr().out.count("too short") == 2
    # A job without pictures has no such rate, however long it is.
    assert "too short" not in tables.markdown(runs_of(1, throughput=None), None)


def test_simulated_runs_are_marked_and_have_no_ap(capsys):
    runs = runs_of(1, 4, ap={}, simulated=True, backend="simulated")
    page = tables.markdown(runs, None)
    assert "**Simulated**" in page
    assert "| 4 | - | - | - | 104.0 (simulated) | 92.24 |" in page
    assert [record["simulated"] for record in table_of(runs)] == ["true", "true"]
    tables.print_runs(runs)
    shown = capsys.readouterr().out
    assert "SIMULATED" in shown
    assert shown.count("simulated") == 2
    assert "AP" not in shown


def test_a_sweep_of_which_a_part_is_simulated_says_so(capsys):
    real, simulated = runs_of(1)[0], runs_of(4, simulated=True, ap={})[0]
    tables.print_runs([real, simulated, FAILED])
    assert "sweep of 3 runs, some SIMULATED" in capsys.readouterr().out
    tables.print_runs([simulated, FAILED])
    assert "sweep of 2 runs, SIMULATED" in capsys.readouterr().out


def test_the_host_s_rate_has_a_column_where_a_run_knows_it(capsys):
    rates = [{"pictures_per_second": 250.4}, {"pictures_per_second": 609.7}]
    benchmark = {"inference": None, "host": rates}
    runs = runs_of(1, devices=[], throughput=None, benchmark=benchmark)
    page = tables.markdown(runs, None)
    assert "| pictures/s, host alone |" in page
    assert "| 609.7 |" in page
    assert table_of(runs)[0]["host_pictures_per_s"] == "609.7"
    tables.print_runs(runs)
    assert "609.7" in capsys.readouterr().out


def test_pure_inference_has_a_column_where_a_run_knows_it(capsys):
    rates = {"steady": None, "end_to_end": 10.0, "pure_inference": 420.5}
    runs = runs_of(1, 4, throughput=rates)
    assert "pictures/s, pure inference" in tables.markdown(runs, None)
    tables.print_runs(runs)
    shown = capsys.readouterr().out
    assert shown.count("420.5") == 2
    assert "without a steady rate" in shown


def test_the_screen_shows_every_figure_whole(capsys):
    runs = [
        *runs_of(1, 4),
        summarise_run(2, {"dataset": "wider_val", "model.batch": "[x]"}, 2, "no", None),
    ]
    tables.print_runs(runs)
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
    runs = [summarise_run(n, one, 0, None, results_of()) for n, one in enumerate(overrides)]
    tables.print_runs(runs)
    shown = capsys.readouterr().out
    assert "preprocess.input" in shown
    assert "export.input" in shown


def test_the_figure_of_the_published_table_stands_beside_it():
    devices = [
        {"pictures": 1, "busy_share": 0.5, "batch_ms": None, "device_ms": {"mean": mean}}
        for mean in (2.0, 4.0)
    ]
    runs = runs_of(1, 8, devices=devices)
    assert [run.figures["device_time_pictures_per_s"] for run in runs] == [750.0, 6000.0]
    page = tables.markdown(runs, None)
    title, _, first = [line for line in page.splitlines() if line.startswith("|")][:3]
    cells = dict(zip(title.split(" | "), first.split(" | "), strict=True))
    assert cells["pictures/s by device time"] == "750.0"
    assert "pictures/s by device time" not in tables.markdown(runs_of(1, 8), None)

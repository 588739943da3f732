"""The page of a sweep: its curve, and a linked row for each run."""

from __future__ import annotations

from dataclasses import replace

from cfdist.sweep.page import sweep_page, write_sweep_report
from cfdist.sweep.plot import footer
from tests.report.page.checks import checked
from tests.sweep.results import FAILED, runs_of


def test_each_run_has_a_row_that_leads_to_its_page(tmp_path):
    runs = [
        replace(run, folder=tmp_path / f"model.batch={batch}")
        for run, batch in zip(runs_of(1, 4), (1, 4), strict=True)
    ]
    runs[0].folder.mkdir()
    (runs[0].folder / "report.html").touch()
    page = checked(sweep_page([*runs, FAILED], tmp_path))
    titles, first, _, failed = page.table("The runs")
    assert titles[:4] == ["run", "model.batch", "state", "backend"]
    assert first[:4] == ["0", "1", "done", "openvino"]
    assert failed[:3] == ["1", "0", "failed (2)"]
    links = [attributes["href"] for attributes, text in page.all("a") if text == "0"]
    assert links == ["model.batch%3D1/report.html"]
    assert ("", "failed: run 1 (model.batch=0): model.batch=0: no") in [
        ("", text) for _, text in page.all("li")
    ]


def test_the_curve_has_a_point_for_each_run_and_the_published_ones(tmp_path):
    html = sweep_page(runs_of(1, 4), tmp_path)
    assert 'aria-label="Pictures a second over batch size (pictures)"' in html
    assert html.count('class="dot s0"') == 2
    assert "published: one Ascend 310P3, pure inference</li>" in html
    assert "They are a yardstick" in html
    alone = sweep_page(runs_of(1, 4, pictures={"total": 9, "done": 9, "failed": 0}), tmp_path)
    assert "yardstick" not in alone


def test_a_run_that_has_no_point_is_named_below_the_curve(tmp_path):
    too_short = runs_of(1, 4, throughput={"steady": None, "end_to_end": 9.0})[1]
    html = sweep_page([runs_of(1)[0], too_short, FAILED], tmp_path)
    said = "drawn: model.batch=4 (too short for a rate), model.batch=0 (failed)"
    assert f"<p>Not {said}</p>" in html
    assert f"not {said}" in footer([runs_of(1)[0], too_short, FAILED]).replace("\n", " ")
    assert "Not drawn" not in sweep_page(runs_of(1, 4), tmp_path)


def test_names_are_drawn_as_bars(tmp_path):
    runs = [
        replace(run, overrides={"backend": name})
        for run, name in zip(runs_of(4, 4), ("openvino", "<torch>"), strict=True)
    ]
    html = sweep_page(runs, tmp_path)
    checked(html)
    assert html.count('class="bar s0"') == 2
    assert "&lt;torch&gt;</text>" in html


def test_the_page_is_written_into_the_sweep_s_folder(tmp_path, capsys):
    write_sweep_report(runs_of(1), tmp_path)
    checked((tmp_path / "report.html").read_text())
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"

"""Writing a page, whatever happens; and its colours."""

from __future__ import annotations

import pytest

from cfdist.report.page.render import render, write_report
from tests.report.page.checks import contrast, palettes


def test_a_page_is_written_and_named(tmp_path, capsys):
    write_report(tmp_path, lambda: "<p>\udcff</p>")
    assert (tmp_path / "report.html").read_text() == "<p>\\udcff</p>"
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"


def test_a_report_that_fails_is_a_note_and_leaves_nothing(tmp_path, capsys, caplog):
    def make() -> str:
        raise ZeroDivisionError("by\nzero")

    write_report(tmp_path, make)
    assert [*tmp_path.iterdir()] == []
    assert capsys.readouterr().out == (
        "note: no report.html (ZeroDivisionError: by zero); the results are whole, see run.log\n"
    )
    assert "Traceback" in caplog.text


def test_a_folder_that_is_gone_is_a_note(tmp_path, capsys):
    (tmp_path / "file").touch()
    write_report(tmp_path / "file", lambda: "")
    assert capsys.readouterr().out.startswith("note: no report.html (")


def test_names_from_outside_are_escaped():
    parts = dict.fromkeys(("published", "listed", "compared"), None)
    table = {"caption": "<script>", "columns": (), "rows": (), "is_sortable": False}
    parts |= {"compared": table, "listed": table}
    page = render(
        "sweep.html.j2", title="<b>&", notes=["<i>"], charts=[], remark="", origin=[], **parts
    )
    assert "<title>&lt;b&gt;&amp;</title>" in page
    assert "<i>" not in page
    assert 'aria-label="&lt;script&gt;"' in page


@pytest.mark.parametrize("name", ["light", "dark", "print"])
def test_colours_can_be_told_from_their_ground(name):
    colours = palettes()["light"] | palettes()[name]
    for text in ("ink", "soft", "link"):
        for ground in ("paper", "wash"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["warn"], colours["warn-wash"]) >= 4.5
    for line in ("c0", "c1", "c2", "c3", "c4", "c5"):
        assert contrast(colours[line], colours["paper"]) >= 3, line

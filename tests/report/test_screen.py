"""What the screen says of a run."""

from __future__ import annotations

import pytest

from cfdist.report import screen
from cfdist.report.results import Results


def results(passes: int | None) -> Results:
    ap = dict.fromkeys(("easy", "medium", "hard"), 0.5)
    return Results(
        job="evaluate", ap={"official": ap}, total=610, done=609, failures=[("e/a", "broken")],
        seconds={}, config={}, passes=passes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("passes", "title"),
    [
        (None, "WIDER FACE AP over 609 pictures"),
        (1, "WIDER FACE AP over 609 pictures"),
        (4, "WIDER FACE AP over 609 pictures (the first of 4 passes)"),
    ],
)
def test_the_ap_is_that_of_the_pictures_however_often_they_were_read(passes, title, capsys):
    screen.print_results(results(passes))
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert title in shown

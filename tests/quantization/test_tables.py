"""What a person reads of a quantisation."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from cfdist.comparison.differences import BoxAgreement
from cfdist.comparison.tally import Tally
from cfdist.quantization.tables import print_trade, trade_parts
from cfdist.report.screen import console


def ap(easy: float) -> dict:
    return {"official": {"easy": easy, "medium": 0.5, "hard": 0.4}}


@pytest.fixture
def results() -> SimpleNamespace:
    runtime = {
        "ap": {"float32": ap(0.94), "int8": ap(0.9375)},
        "ap_difference": {"official": {"easy": -0.0025, "medium": 0.0, "hard": 0.001}},
        "boxes": asdict(BoxAgreement(4, 3, 3, 3))
        | {"found_share": 0.75, "confirmed_share": 1.0, "mean_score_difference": 0.1},
        "pictures_per_second": {"float32": 10.0, "int8": 23.4},
        "speedup": 2.34,
    }
    about = {"path": "m_int8.onnx", "layers": 54, "kept": ["a", "b"], "bytes": 2_100_000}
    return SimpleNamespace(extra={"quantize": about | {"runtimes": {"rt": runtime}}}, done=610)


def test_speed_and_ap_of_both_forms_and_what_is_between_them(results):
    with console.capture() as capture:
        print_trade(results)
    text = capture.get()
    parts = ["54 layers in int8, 2 operators kept in float32, 2.1 MB", "over 610 pictures"]
    parts += ["10.00", "23.40", "x 2.34", "94.00 %", "93.75 %", "-0.25", "+0.00", "+0.10"]
    assert [part for part in parts if part not in text] == []


def test_the_page_holds_both_forms_against_each_other(results):
    parts = trade_parts(results, {"rt": Tally({}, "official")}, {})
    trade, boxes = parts.tables
    assert [[cell.text for cell in row[:3]] for row in trade.rows] == [
        ["rt, official (IoU 0.5), float32", "10.00", "94.00 %"],
        ["rt, official (IoU 0.5), int8", "23.40", "93.75 %"],
        ["rt, official (IoU 0.5), difference", "x 2.34", "-0.250 %"],
    ]
    assert boxes.caption.startswith("Boxes on rt; ")
    assert boxes.rows[0][0].text == "of the float32 model's, found by the int8 model"
    (gallery,) = parts.galleries
    assert gallery.title == "The pictures that differ most on rt"
    assert len(parts.charts) == 3

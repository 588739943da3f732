"""What a person reads of a quantisation."""

from __future__ import annotations

from types import SimpleNamespace

from cfdist.quantization.tables import print_trade
from cfdist.report.screen import console


def ap(easy: float) -> dict:
    return {"official": {"easy": easy, "medium": 0.5, "hard": 0.4}}


def test_speed_and_ap_of_both_forms_and_what_is_between_them():
    runtime = {
        "ap": {"float32": ap(0.94), "int8": ap(0.9375)},
        "ap_difference": {"official": {"easy": -0.0025, "medium": 0.0, "hard": 0.001}},
        "pictures_per_second": {"float32": 10.0, "int8": 23.4},
        "speedup": 2.34,
    }
    about = {"path": "m_int8.onnx", "layers": 54, "kept": ["a", "b"], "bytes": 2_100_000}
    results = SimpleNamespace(extra={"quantize": about | {"runtimes": {"rt": runtime}}}, done=610)
    with console.capture() as capture:
        print_trade(results)
    text = capture.get()
    parts = ["54 layers in int8, 2 operators kept in float32, 2.1 MB", "over 610 pictures"]
    parts += ["10.00", "23.40", "x 2.34", "94.00 %", "93.75 %", "-0.25", "+0.00", "+0.10"]
    assert [part for part in parts if part not in text] == []

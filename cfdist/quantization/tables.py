"""The screen of `job=quantize`."""

from __future__ import annotations

from cfdist.quantization.trade import FORMS
from cfdist.report.results import Results
from cfdist.report.screen import console, percents, titled_table
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS


def print_trade(results: Results) -> None:
    """Say what was quantised, and show speed and AP of both forms on each runtime."""
    made = results.extra["quantize"]
    console.print(
        f"{made['path']}: {made['layers']} layers in int8, {len(made['kept'])} operators kept in "
        f"float32, {made['bytes'] / 1e6:.1f} MB",
        markup=False,
    )
    table = titled_table(
        f"int8 against float32, AP over {results.done} pictures",
        ["runtime", "protocol", "form"],
        ("pictures/s", *DIFFICULTIES),
    )
    for runtime, found in made["runtimes"].items():
        table.add_section()
        for number, protocol in enumerate(found["ap_difference"]):
            for form in FORMS:
                rate = "" if number else f"{found['pictures_per_second'][form]:.2f}"
                ap = percents(found["ap"][form][protocol])
                is_first = not number and form == FORMS[0]
                title = PROTOCOLS[protocol].title if form == FORMS[0] else ""
                table.add_row(runtime if is_first else "", title, form, rate, *ap)
            apart = found["ap_difference"][protocol]
            cells = (f"{100 * apart[name]:+.2f}" for name in DIFFICULTIES)
            speed = "" if number else f"x {found['speedup']:.2f}"
            table.add_row("", "", "difference", speed, *cells)
    console.print(table)

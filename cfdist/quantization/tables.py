"""What `job=quantize` shows: on the screen and on its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cfdist.comparison.page import KEY, box_table, curves, gallery_of, thumbnails
from cfdist.comparison.tally import Tally
from cfdist.quantization.trade import FORMS
from cfdist.report.page.run import OwnParts
from cfdist.report.page.tables import Cell, Table, number, percent, text
from cfdist.report.results import Results
from cfdist.report.screen import console, percents, points, titled_table
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS


def print_trade(results: Results) -> None:
    """Say what was quantised, and show speed and AP of both forms on each runtime."""
    made = results.extra["quantize"]
    console.print(
        f"{made['path']}: {made['layers']} layers in int8, {len(made['kept'])} operators kept in "
        f"float32, {made['bytes'] / 1e6:.1f} MB"
    )
    table = titled_table(
        f"int8 against float32, AP over {results.done} pictures",
        ["runtime", "protocol", "form"],
        ("pictures/s", *DIFFICULTIES),
    )
    for runtime, found in made["runtimes"].items():
        table.add_section()
        for place, protocol in enumerate(found["ap_difference"]):
            for form in FORMS:
                rate = "" if place else f"{found['pictures_per_second'][form]:.2f}"
                ap = percents(found["ap"][form][protocol])
                is_first = not place and form == FORMS[0]
                title = PROTOCOLS[protocol].title if form == FORMS[0] else ""
                table.add_row(runtime if is_first else "", title, form, rate, *ap)
            apart = found["ap_difference"][protocol]
            cells = (points(apart[name]) for name in DIFFICULTIES)
            speed = "" if place else f"x {found['speedup']:.2f}"
            table.add_row("", "", "difference", speed, *cells)
    console.print(table)


def trade_parts(
    results: Results, tallies: Mapping[str, Tally], places: Mapping[str, str]
) -> OwnParts:
    """The page: speed and AP, and of each runtime the pictures that differ most.

    `places` says where the pictures are.
    """
    runtimes = results.extra["quantize"]["runtimes"]
    sides = {"reference": "float32 model", "candidate": "int8 model"}
    own = {name: (one, f" on {name}") for name, one in tallies.items()}
    drawing = thumbnails()
    columns = ("runtime, protocol, form", "pictures/s", *DIFFICULTIES)
    return OwnParts(
        [
            Table("int8 against float32", columns, [*_rows(runtimes)], is_sortable=False),
            *(box_table(runtimes[name]["boxes"], on, **sides) for name, (_, on) in own.items()),
        ],
        [chart for tally, on in own.values() for chart in curves(tally, on, **sides)],
        KEY,
        [gallery_of(tally, places, drawing, on, **sides) for tally, on in own.values()],
    )


def _rows(runtimes: Mapping[str, Any]) -> Iterator[list[Cell]]:
    for runtime, found in runtimes.items():
        rates = found["pictures_per_second"]
        for protocol, apart in found["ap_difference"].items():
            title = f"{runtime}, {PROTOCOLS[protocol].title}"
            for form in FORMS:
                cells = (percent(found["ap"][form][protocol][name]) for name in DIFFICULTIES)
                yield [text(f"{title}, {form}"), number(rates[form], 2), *cells]
            cells = (percent(apart[name], 3) for name in DIFFICULTIES)
            speed = Cell(f"x {found['speedup']:.2f}", found["speedup"])
            yield [text(f"{title}, difference"), speed, *cells]

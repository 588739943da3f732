"""The screen of `job=compare`."""

from __future__ import annotations

from typing import Any

from cfdist.report.screen import console, percents, titled_table
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS


def print_comparison(comparison: dict[str, Any]) -> None:
    """Say how far the candidate is from the reference: heads, boxes, AP, and the verdict."""
    if comparison["heads"]:
        figures = ("largest difference", "mean difference", "cosine")
        table = titled_table("head maps, candidate against reference", ["head"], figures)
        for name, head in comparison["heads"].items():
            cells = (f"{head['max']:.2e}", f"{head['mean']:.2e}", f"{head['cosine']:.8f}")
            table.add_row(name, *cells)
        console.print(table)
    boxes = comparison["boxes"]
    console.print(
        f"boxes: {boxes['found']} of {boxes['reference']} of the reference found again "
        f"({100 * boxes['found_share']:.2f} %), {boxes['confirmed']} of {boxes['candidate']} of "
        f"the candidate confirmed ({100 * boxes['confirmed_share']:.2f} %); scores differ by "
        f"{boxes['mean_score_difference']:.1e} on average, {boxes['largest_score_difference']:.1e} "
        "at most"
    )
    table = titled_table("WIDER FACE AP", ["protocol", "model"], DIFFICULTIES)
    for protocol in comparison["reference"]["ap"]:
        for model in ("reference", "candidate"):
            ap = comparison[model]["ap"][protocol]
            table.add_row(PROTOCOLS[protocol].title, model, *percents(ap))
        apart = comparison["ap_difference"][protocol]
        table.add_row("", "difference", *(f"{100 * apart[name]:+.3f}" for name in DIFFICULTIES))
    console.print(table)
    past = [name for name, within in comparison["within"].items() if not within]
    console.print(f"PAST THE TOLERANCE: {', '.join(past)}" if past else "within the tolerances")

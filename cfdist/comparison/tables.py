"""The screen of `job=compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfdist.report.screen import console, percents, points, print_compact, titled_table
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS


def print_layers(comparison: Mapping[str, Any]) -> None:
    """Show each tensor of two graphs of one topology, and name the first that differs."""
    title = f"tensors, candidate against reference: {comparison['matched']}"
    figures = ("largest difference", "relative", "cosine", "")
    table = titled_table(title, ["tensor", "operator", "shape"], figures)
    for one in comparison["layers"]:
        shape = "x".join(map(str, one["shape"]))
        cells = (f"{one['max']:.2e}", f"{one['relative']:.2e}", f"{one['cosine']:.8f}")
        verdict = "" if one["within"] else "PAST"
        table.add_row(one["tensor"], one["operator"], shape, *cells, verdict)
    print_compact(table)
    for key, words in (("first_different", "the first that is not equal bit for bit"),
                       ("first_past", "PAST THE TOLERANCE first")):  # fmt: skip
        if one := comparison[key]:
            line = f"{words}: {named(one)}, relative difference {one['relative']:.1e}"
            console.print(line)
    if not comparison["first_different"]:
        console.print("all tensors are equal bit for bit")
    elif comparison["within_tolerance"]:
        console.print("within the tolerances")


def named(entry: Mapping[str, Any]) -> str:
    """A layer for people: "366 (Conv, weights backbone.features.1.conv.0.weight)"."""
    weights = f", weights {entry['weights'][0]}" if entry["weights"] else ""
    other = entry["candidate_tensor"]
    also = "" if other == entry["tensor"] else f", {other} in the candidate"
    return f"{entry['tensor']} ({entry['operator']}{weights}{also})"


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
        table.add_row("", "difference", *(points(apart[name], 3) for name in DIFFICULTIES))
    console.print(table)
    past = [name for name, within in comparison["within"].items() if not within]
    console.print(f"PAST THE TOLERANCE: {', '.join(past)}" if past else "within the tolerances")

"""The page of a run, whatever its job: the parts that its results have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cfdist.report.accuracy import is_like_published, published_ap
from cfdist.report.page import charts, tables
from cfdist.report.page.gallery import Gallery
from cfdist.report.page.quality import Evidence, quality_of
from cfdist.report.page.render import render, write_report
from cfdist.report.page.tables import Table
from cfdist.report.results import Results, verdict
from cfdist.widerface.ground_truth import DIFFICULTIES
from cfdist.widerface.metric import PROTOCOLS

_MOST_LISTED = 200  # rows of failures and events
_MOST_DEVICES = 64  # rows of the timeline


@dataclass(frozen=True)
class OwnParts:
    """What only one job shows; `key` says what the boxes of the galleries are."""

    tables: Sequence[Table] = ()
    charts: Sequence[Markup] = ()
    key: Mapping[str, str] = field(default_factory=dict)
    galleries: Sequence[Gallery] = ()


def write_run_report(
    results: Results,
    folder: Path,
    evidence: Evidence | None,
    make_parts: Callable[[], OwnParts] = OwnParts,
) -> None:
    """Write the page of a run whose results are written, unless `report=false`.

    Args:
        results: What the run found.
        folder: The run's.
        evidence: Its finds; `None` without an AP.
        make_parts: Makes what only this job has.
    """
    if results.config["report"]:
        write_report(folder, lambda: run_page(results.to_dict(), evidence, make_parts()))


def run_page(results: Mapping[str, Any], evidence: Evidence | None, own: OwnParts) -> str:
    """The page, from the content of `results.json`."""
    protocol = results["config"]["eval"]["protocol"]
    published = published_ap() if is_like_published(results) else None
    time_parts = tables.time_parts(results)
    return render(
        "run.html.j2",
        title=f"cfdist {results['job']}: {results['config']['model']['name']}",
        results=results,
        reason=verdict(dict(results))[1],
        facts=_facts(results, protocol),
        ap=tables.ap_table(results, published) if results["ap"] else None,
        published=published is not None,
        quality=quality_of(evidence, protocol) if evidence and results["ap"] else None,
        own=own,
        speed=_speed(results),
        time_bar=charts.share_bar("Where the wall time went", time_parts),
        time_table=tables.time_table(time_parts),
        failures=tables.reasons("Pictures that failed", results["failures"], _MOST_LISTED),
        damaged=tables.reasons("Damaged files", results["damaged"], _MOST_LISTED),
        events=tables.event_table(results["events"], _MOST_LISTED),
        settings=tables.settings(results["config"]),
        machine=tables.pairs("Machine and data", _machine(results), ("what", "value")),
        versions=tables.pairs("Versions", results["versions"], ("distribution", "version")),
    )


def _facts(results: Mapping[str, Any], protocol: str) -> dict[str, str]:
    """What a reader wants to know first."""
    facts = {}
    ap = results["ap"].get(protocol)
    for name in DIFFICULTIES if ap else ():
        facts[f"AP {name}, {PROTOCOLS[protocol].title}"] = f"{100 * ap[name]:.2f} %"
    pictures = results["pictures"]
    if pictures["total"]:
        facts["pictures"] = f"{pictures['done']} of {pictures['total']}"
    for name, rate in (results["throughput"] or {}).items():
        if rate is not None:
            facts[f"pictures/s, {name.replace('_', ' ')}"] = f"{rate:.1f}"
    if results["devices"]:
        facts["devices"] = f"{len(results['devices'])} x {results['backend']}"
    if results["batch"] and results["job"] != "tune":  # which looks for it
        facts["batch"] = str(results["batch"])
    facts["wall time"] = f"{results['seconds']['total']:.1f} s"
    return facts


def _machine(results: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(results.get("provenance") or {})
    for name, value in (results["model"] or {}).items():
        found[f"model, {name}"] = value
    for name, value in (results.get("peak_memory_mb") or {}).items():
        found[f"peak memory, {name}"] = f"{value:.0f} MB"
    if results["fingerprint"]:
        found["fingerprint"] = results["fingerprint"]
    return found


def _speed(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The devices' table, timelines and batch times; `None` without devices."""
    devices: Sequence[Mapping[str, Any]] = results["devices"]
    if not devices:
        return None
    seen = [one for one in devices if one["timeline"]["start"] is not None][:_MOST_DEVICES]
    return {
        "devices": tables.device_table(results),
        "timeline": charts.device_rows(
            "What each device did, from the first picture to the last",
            seen,
            results["seconds"]["run"] or 0.0,
        )
        if seen
        else None,
        "more": len(devices) - len(seen),
        "batches": _batch_chart(devices),
    }


def _batch_chart(devices: Sequence[Mapping[str, Any]]) -> Markup | None:
    """How many batches took how long, all devices together by the slowest device's scale."""
    found = [one["batch_histogram"] for one in devices if one["batch_histogram"]]
    if not found:
        return None
    highest = max(one["edges_ms"][-1] for one in found)
    lowest = min(one["edges_ms"][0] for one in found)
    bars = len(found[0]["counts"])
    step = (highest - lowest) / bars or 1.0
    counts = [0] * bars
    for one in found:
        for left, right, batches in zip(
            one["edges_ms"], one["edges_ms"][1:], one["counts"], strict=False
        ):
            counts[min(bars - 1, int(((left + right) / 2 - lowest) / step))] += batches
    digits = 0 if step >= 1 else 1 if step >= 0.1 else 2
    named = {f"{lowest + i * step:.{digits + 1}f}": float(n) for i, n in enumerate(counts)}
    return charts.bar_chart(
        "Batch times of all devices; the last bar holds the slowest percent",
        named,
        "milliseconds a batch, from",
        charts.Axis("batches", charts.ticks_to(max(counts))),
    )

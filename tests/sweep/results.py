"""Results of a sweep's runs, as far as a summary reads them."""

from __future__ import annotations

from cfdist.sweep.runs import RunSummary, summarise_run

AP = {
    "guide": {"easy": 0.9552, "medium": 0.9405, "hard": 0.7111},
    "official": {"easy": 0.94, "medium": 0.9231, "hard": 0.6527},
}


def results_of(batch: int = 4, **changes) -> dict:
    """What `results.json` of a run on two devices holds, as far as a summary reads it."""
    return {
        "ap": AP,
        "pictures": {"total": 3226, "done": 3226, "failed": 0},
        "failures": [],
        "throughput": {"steady": 100.0 + batch, "end_to_end": 50.0},
        "seconds": {"total": 12.2, "run": 6.1},
        "devices": [
            {"name": "device:0", "pictures": 300, "busy_share": 0.8, "batch_ms": {"median": 10.0}},
            {"name": "device:1", "pictures": 300, "busy_share": 0.6, "batch_ms": {"median": 30.0}},
            {"name": "device:2", "pictures": 10, "busy_share": 0.1, "batch_ms": None},
        ],
        "backend": "openvino",
        "batch": batch,
        "simulated": False,
        "config": {
            "eval": {"protocol": "guide", "gate": False},
            "model": {"height": 800, "width": 800},
            "dataset": {"kind": "wider", "name": "wider_val"},
        },
        "provenance": {
            "dataset": "wider_val", "pictures": 3226, "host": "lab3", "cpu": "Kunpeng 920",
            "cores": 48, "date": "2026-03-01T10:00:00+01:00", "commit": "abc123",
        },
        "notes": ["a note"],
        "expected": None,
    } | changes  # fmt: skip


def runs_of(*batches: int, **changes) -> list[RunSummary]:
    """Runs that differ in model.batch."""
    return [
        summarise_run(
            number,
            {"dataset": "wider_val", "model.batch": str(batch)},
            0,
            None,
            results_of(batch, **changes),
        )
        for number, batch in enumerate(batches)
    ]


FAILED = summarise_run(
    1, {"dataset": "wider_val", "model.batch": "0"}, 2, "model.batch=0: no", None
)

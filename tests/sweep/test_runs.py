"""What a run says of itself in the summary of its sweep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.backends.simulated import PUBLISHED_RATES
from cfdist.report.accuracy import published_ap
from cfdist.sweep.runs import (
    origin_lines,
    published_beside,
    summarise_run,
    swept_keys,
)
from tests.sweep.results import AP, FAILED, results_of, runs_of


def test_a_run_has_its_figures():
    (run,) = runs_of(4)
    assert run.figures == {
        "device_count": 3,
        "batch": 4,
        "ap_easy": 0.9552,
        "ap_medium": 0.9405,
        "ap_hard": 0.7111,
        "steady_pictures_per_s": 104.0,
        "end_to_end_pictures_per_s": 50.0,
        "median_batch_ms": 20.0,  # of the devices that ran a full batch
        "busy_share": pytest.approx(0.5),
        "total_seconds": 12.2,
        "first_to_last_pictures_per_s": pytest.approx(100.0),
        "published_ap_easy": 0.9224,
        "published_ap_medium": 0.9102,
        "published_ap_hard": 0.7455,
        "published_images_per_s": 412.4094,
    }
    assert (run.state, run.reason, run.notes) == ("done", None, ("a note",))


@pytest.mark.parametrize(
    ("preprocess", "is_beside"),
    [
        ({}, True),
        ({"size": "letterbox", "scales": [1.0], "flip": False}, True),
        ({"size": "own"}, False),
        ({"scales": [1.0, 1.5]}, False),
        ({"flip": True}, False),
    ],
)
def test_an_earlier_version_s_run_has_the_published_figures_beside_it(preprocess, is_beside):
    config = results_of()["config"] | {"preprocess": preprocess}
    (run,) = runs_of(4, config=config)
    assert ("published_ap_hard" in run.figures) == is_beside


def test_a_run_without_results_has_no_figures():
    assert (FAILED.state, FAILED.reason) == ("failed (2)", "model.batch=0: no")
    assert FAILED.figures == {}


def test_what_differs_is_swept():
    assert swept_keys([*runs_of(4), FAILED]) == ["model.batch"]
    assert swept_keys(runs_of(4)) == []


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("01")), max_size=4))
def test_a_swept_key_has_two_values_and_no_other_key_has(overrides):
    runs = [summarise_run(n, one, 0, None, None) for n, one in enumerate(overrides)]
    swept = swept_keys(runs)
    for key in "abc":
        assert (key in swept) == (len({one.get(key) for one in overrides}) > 1)


def test_jobs_without_devices_or_rates_have_no_figures_of_them():
    (run,) = runs_of(5, throughput=None, devices=[], backend=None, ap={})
    assert run.figures == {"batch": 5, "total_seconds": 12.2}


def test_where_only_the_inference_was_measured_its_devices_count():
    inference = {
        "devices": [
            {"name": "device:0", "slots": 1, "batch_ms": {"median": 10.0}, "device_ms": None},
            {"name": "device:1", "slots": 1, "batch_ms": {"median": 30.0}, "device_ms": None},
        ]
    }
    (run,) = runs_of(4, devices=[], benchmark={"inference": inference})
    assert (run.figures["device_count"], run.figures["median_batch_ms"]) == (2, 20.0)
    assert "busy_share" not in run.figures

    # The devices of the whole run, whose rates stand beside, come first.
    (run,) = runs_of(4, benchmark={"inference": inference})
    assert run.figures["device_count"] == 3
    (run,) = runs_of(4, devices=[], benchmark={"inference": None})
    assert not {"device_count", "median_batch_ms"} & set(run.figures)


def test_the_host_s_rate_is_its_best():
    rates = [{"pictures_per_second": 250.4}, {"pictures_per_second": 609.7}]
    (run,) = runs_of(1, benchmark={"inference": None, "host": rates})
    assert run.figures["host_pictures_per_s"] == 609.7


def test_latencies_are_those_of_whole_pictures():
    whole = {"median": 5.0, "p90": 6.0, "p99": 9.0}
    (run,) = runs_of(4, latency_ms={"whole": whole, "reading": {"median": 1.0}})
    assert [run.figures[f"{name}_ms"] for name in ("p50", "p90", "p99")] == [5.0, 6.0, 9.0]
    (run,) = runs_of(4, latency_ms={"whole": None})  # too short
    assert "p50_ms" not in run.figures


def test_the_published_ap_is_the_guide_s():
    ap = {"easy": 0.9224, "medium": 0.9102, "hard": 0.7455}
    assert {name: published_ap()[name] for name in ap} == ap
    assert published_ap().protocol == "guide"


@given(st.none() | st.integers(1, 64))
def test_published_figures_are_those_of_a_batch_size(batch):
    figures = published_beside(batch)
    if batch in (1, 4, 8, 16, 32):
        assert figures == {
            "published_ap_easy": 0.9224,
            "published_ap_medium": 0.9102,
            "published_ap_hard": 0.7455,
            "published_images_per_s": PUBLISHED_RATES["310P3"][batch],
        }
    else:
        assert figures == {}


def changed(section: str, **values) -> dict:
    """A change of one section of the configuration."""
    config = results_of()["config"]
    return {"config": config | {section: config[section] | values}}


@pytest.mark.parametrize(
    "changes",
    [
        {"pictures": {"total": 610, "done": 610, "failed": 0}},
        {"pictures": {"total": 3226, "done": 3225, "failed": 1}},
        changed("dataset", kind="sample"),
        changed("eval", protocol="official"),
        changed("eval", quirks=["no_pixel"]),
        changed("model", peaks="threshold"),
        changed("model", score=0.5),
        changed("model", top_k=750),
        changed("model", height=640),
        changed("model", width=1024),
    ],
    ids=[
        *("part", "failed", "sample", "protocol", "quirks"),
        *("peaks", "score", "cap", "rows", "columns"),
    ],
)
def test_published_figures_stand_beside_their_like_only(changes):
    assert "published_images_per_s" in runs_of(4)[0].figures
    (run,) = runs_of(4, **changes)
    assert not [name for name in run.figures if name.startswith("published")]


def test_a_run_with_quirks_is_about_the_figure_with_them():
    quirky = {"guide with no_pixel": dict.fromkeys(("easy", "medium", "hard"), 0.25)}
    (run,) = runs_of(4, ap=AP | quirky)
    assert (run.protocol, run.figures["ap_hard"]) == ("guide with no_pixel", 0.25)
    # With each of them alone, none is the run's.
    (run,) = runs_of(4, ap=AP | quirky | {"guide with last_face": AP["guide"]})
    assert (run.protocol, run.figures["ap_hard"]) == ("guide", AP["guide"]["hard"])


def test_a_run_says_what_it_was_measured_on():
    one, two = runs_of(1, 4)
    other = results_of(8)
    other["provenance"] = other["provenance"] | {"date": "2026-02-01T09:00:00+01:00", "host": "x"}
    runs = [one, two, summarise_run(2, {}, 0, None, other), FAILED]
    assert origin_lines(runs) == [
        "data set: wider_val",
        "pictures: 3226",
        "host: lab3, x",
        "processor: Kunpeng 920, 48 cores",
        "date: 2026-02-01T09:00:00+01:00 to 2026-03-01T10:00:00+01:00",
        "commit: abc123",
    ]
    # Of runs with an AP also how the pictures were tested, for each way the runs that were.
    ways = [summarise_run(n, {}, 0, None, results_of(4, test=way)) for n, way in enumerate("aba")]
    assert origin_lines(ways)[2:4] == ["test of runs 0, 2: a", "test of run 1: b"]
    assert origin_lines(ways[:1])[2] == "test: a"
    # An earlier version's results know nothing of it; outside a checkout there is no commit.
    assert origin_lines(runs_of(1, provenance=None)) == []
    known = results_of()["provenance"] | {"commit": None}
    assert origin_lines(runs_of(1, provenance=known))[-1].startswith("date: ")


def test_a_run_of_one_chunk_has_no_rate_between_its_pictures():
    assert "first_to_last_pictures_per_s" in runs_of(4)[0].figures
    (run,) = runs_of(4, start_up_seconds={"first_chunk": 6.1})
    assert "first_to_last_pictures_per_s" not in run.figures
    (run,) = runs_of(4, start_up_seconds={"first_chunk": 3.0})
    assert "first_to_last_pictures_per_s" in run.figures

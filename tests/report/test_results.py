"""`results.json`: its figures, and the exit code that they mean."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.devices.base import DeviceReport
from cfdist.distributed.events import Event
from cfdist.errors import UserError
from cfdist.report.results import (
    HISTOGRAM_BARS,
    Phases,
    Results,
    batch_histogram,
    batch_statistics,
    check_gate,
    checkout_commit,
    chosen_first,
    device_entry,
    device_time_rate,
    expected_ap,
    phase_seconds,
    verdict,
)
from tests.sweep.results import results_of

times = st.lists(st.floats(0.001, 1e6), max_size=20)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, 0, None),
        ({"failures": [{"picture": "a/b", "reason": "broken"}]}, 3, "1 of 3226 pictures failed"),
        (
            {
                "expected": {"met": False},
                "config": {"eval": {"protocol": "guide", "gate": True}},
            },
            5,
            "model.expected",
        ),
        ({"expected": {"met": False}}, 0, None),
        ({"comparison": {"within_tolerance": False}}, 4, "too far apart"),
        ({"comparison": {"within_tolerance": True}}, 0, None),
    ],
)
def test_the_verdict_is_that_of_the_job(changes, code, words):
    found, reason = verdict(results_of(**changes))
    assert found == code
    assert reason is None if words is None else words in reason


def results(**changes) -> Results:
    values = {
        "job": "evaluate", "ap": {}, "total": 2, "done": 1, "failures": [("e/a", "broken")],
        "seconds": {"total": 1.0}, "config": {"eval": {"gate": True}},
    }  # fmt: skip
    return Results(**values | changes)


def test_the_exit_code_is_that_of_what_was_written(tmp_path):
    missed = {"protocol": "official", "ap": {"easy": 0.9}, "tolerance": 0.002, "met": False}
    for one, code in (
        (results(failures=[]), 0),
        (results(), 3),
        (results(extra={"comparison": {"within_tolerance": False}}), 4),
        (results(expected=missed), 5),
    ):
        written = json.loads(one.write(tmp_path).read_text())
        assert (one.exit_code, verdict(written)[0]) == (code, code)


def test_a_page_of_earlier_results_goes(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("of another run")
    results().write(tmp_path)
    assert not page.exists()


def test_the_keys_are_a_promise(tmp_path):
    written = json.loads(results(extra={"own": [1]}).write(tmp_path).read_text())
    assert list(written) == [
        "schema_version", "job", "ap", "pictures", "test", "failures", "damaged", "throughput",
        "seconds", "devices", "model", "backend", "batch", "simulated", "fingerprint", "passes",
        "versions",
        "provenance",
        "config", "notes", "events", "expected", "own",
    ]  # fmt: skip
    assert written["pictures"] == {"total": 2, "done": 1, "failed": 1}
    assert written["failures"] == [{"picture": "e/a", "reason": "broken"}]
    assert written["damaged"] == []
    assert written["events"] == []
    happened = Event("device_set_aside", "device:1 is out", "device:1", "node", "3", "2026-01-01")
    written = json.loads(results(events=[happened]).write(tmp_path).read_text())
    assert written["events"] == [
        {
            "what": "device_set_aside",
            "text": "device:1 is out",
            "device": "device:1",
            "host": "node",
            "chip": "3",
            "time": "2026-01-01",
        }
    ]
    assert {"python", "cfdist", "numpy"} <= set(written["versions"])


def test_the_file_says_what_was_measured_where_and_when(tmp_path):
    config = {"eval": {"gate": False}, "dataset": {"name": "wider_val"}}
    written = json.loads(results(config=config).write(tmp_path).read_text())["provenance"]
    assert list(written) == ["dataset", "pictures", "host", "cpu", "cores", "date", "commit"]
    assert (written["dataset"], written["pictures"]) == ("wider_val", 1)
    assert written["host"] == platform.node()
    age = datetime.now().astimezone() - datetime.fromisoformat(written["date"])
    assert 0 <= age.total_seconds() < 60
    without = json.loads(results(total=0, failures=[]).write(tmp_path).read_text())["provenance"]
    assert "pictures" not in without


def test_the_commit_is_the_checkout_s_own(tmp_path):
    def git(*arguments: str) -> str:
        settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *settings, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert checkout_commit(None) is None
    assert checkout_commit(tmp_path) is None
    git("init", "-q")
    assert checkout_commit(tmp_path) is None  # nothing committed yet
    file = tmp_path / "inner" / "file"
    file.parent.mkdir()
    file.write_text("a")
    git("add", "-A")
    git("commit", "-qm", "c")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert checkout_commit(tmp_path) == commit
    file.write_text("b")
    assert checkout_commit(tmp_path) == f"{commit}-dirty"
    assert checkout_commit(file.parent) is None  # a copy inside another repository


@given(times)
def test_batch_statistics_are_in_order(batch_ms):
    found = batch_statistics(batch_ms)
    if not batch_ms:
        assert found is None
        return
    assert (found["min"], found["max"]) == (min(batch_ms), max(batch_ms))
    assert found["min"] <= found["median"] <= found["p90"] <= found["p99"] <= found["max"]
    assert found["mean"] == pytest.approx(sum(batch_ms) / len(batch_ms))


@given(times)
def test_the_histogram_counts_each_batch_once(batch_ms):
    found = batch_histogram(batch_ms)
    if not batch_ms:
        assert found is None
        return
    assert sum(found["counts"]) == len(batch_ms)
    assert len(found["edges_ms"]) == len(found["counts"]) + 1 == HISTOGRAM_BARS + 1


@given(st.floats(0, 1e4), st.floats(0, 1e4), times)
def test_a_device_is_busy_for_a_share_of_the_run(busy_seconds, run_seconds, batch_ms):
    report = DeviceReport(7, 7, busy_seconds, batch_ms, host="a", chip="4")
    entry = device_entry("device:0", report, run_seconds, 0.0)
    assert (entry["host"], entry["chip"]) == ("a", "4")
    assert (entry["name"], entry["pictures"], entry["device_ms"]) == ("device:0", 7, None)
    assert entry["batch_ms"] == batch_statistics(batch_ms)
    assert 0 <= entry["busy_share"] <= 1
    if busy_seconds <= run_seconds:
        assert entry["busy_share"] * run_seconds == pytest.approx(busy_seconds)


@given(st.lists(st.floats(0, 1e9), min_size=4, max_size=4))
def test_the_phases_add_up_to_the_whole(moments):
    started, ready, ran, ended = sorted(moments)
    seconds = phase_seconds(started, ready, ran, ended)
    parts = (seconds["start_up"], seconds["run"], seconds["evaluation"])
    assert sum(parts) == pytest.approx(seconds["total"], abs=1e-5)
    without = phase_seconds(started, ready, ran)
    assert (without["total"], without["evaluation"]) == (ran - started, None)


def test_the_chosen_protocol_comes_first():
    ap = {"official": {"easy": 0.5}, "guide": {"easy": 0.6}}
    assert list(chosen_first(ap, "guide")) == ["guide", "official"]
    assert chosen_first(ap, "official") == ap


def test_phases_follow_each_other_without_a_gap():
    started = time.time() - 5
    phases = Phases(started)
    phases.end("imports")
    time.sleep(0.01)
    phases.end("checks")
    phases.end("imports")  # once more: it adds up

    assert list(phases.seconds) == ["imports", "checks"]
    assert phases.seconds["imports"] >= 5
    assert phases.seconds["checks"] >= 0.01
    assert sum(phases.seconds.values()) == pytest.approx(time.time() - started, abs=0.5)


EXPECTED = ("model.expected.easy=0.9", "model.expected.medium=null", "model.expected.hard=0.5",
            "model.expected.tolerance=0.01", "model.expected.protocol=guide",
            "dataset=wider_val")  # fmt: skip
fractions = st.floats(0, 1)


@pytest.fixture(scope="module")
def expecting(compose):
    """A configuration that expects an easy and a hard AP."""
    return compose(*EXPECTED)


@given(easy=fractions, medium=fractions, hard=fractions)
def test_every_expected_ap_has_to_be_reached_within_the_tolerance(expecting, easy, medium, hard):
    ap = {
        "official": dict.fromkeys(("easy", "medium", "hard"), 0.0),
        "guide": {"easy": easy, "medium": medium, "hard": hard},
    }
    assert expected_ap(expecting, ap) == {
        "protocol": "guide",
        "ap": {"easy": 0.9, "hard": 0.5},
        "tolerance": 0.01,
        "met": easy >= 0.9 - 0.01 and hard >= 0.5 - 0.01,
    }


def test_nothing_is_expected_of_the_sample_set_or_without_figures(compose):
    ap = {"guide": dict.fromkeys(("easy", "medium", "hard"), 0.0)}
    assert expected_ap(compose(*EXPECTED, "dataset=sample"), ap) is None
    none = [f"model.expected.{name}=null" for name in ("easy", "medium", "hard")]
    assert expected_ap(compose("dataset=wider_val", *none), ap) is None
    assert expected_ap(compose(*EXPECTED, "eval.quirks=each"), ap) is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.expected.easy=null", "model.expected.hard=null"], "has no expected AP"),
        (["dataset=sample"], "the sample set has no expected AP"),
        (["backend=simulated"], "the simulated backend"),
        (["eval.quirks=no_pixel"], "beside eval.quirks no AP is held against"),
    ],
)
def test_a_gate_that_no_result_can_miss_is_refused(compose, overrides, words):
    check_gate(compose(*EXPECTED, "eval.gate=true"))
    check_gate(compose(*EXPECTED, *overrides))
    with pytest.raises(UserError, match=words):
        check_gate(compose(*EXPECTED, "eval.gate=true", *overrides))


def test_the_rate_by_the_devices_own_time():
    def entries(*means):
        return [{"device_ms": mean and {"mean": mean}} for mean in means]

    assert device_time_rate(entries(2.0), 8) == 4000.0
    assert device_time_rate(entries(2.0, 4.0), 8) == 6000.0
    for unknown in ((), (None,), (2.0, None)):
        assert device_time_rate(entries(*unknown), 8) is None
    assert device_time_rate([{}], 8) is None
    assert device_time_rate(entries(2.0), None) is None

"""Runs of candidates: how long, what is kept, and what a command that goes on takes."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest

from cfdist.config.unused import typed_keys
from cfdist.distributed.rounds import Timeline
from cfdist.errors import DiskFullError, ExitCode, StoppedError, UserError
from cfdist.tuning import trials as module
from cfdist.tuning.candidates import Candidate, Variant
from cfdist.tuning.halving import Standing
from cfdist.tuning.trials import TRIALS, Found, Trials
from cfdist.widerface.manifest import Manifest, WorkItem

MANIFEST = Manifest(tuple(WorkItem(f"e/{i}", f"{i}.jpg", 9) for i in range(40)), 0, 0)
ONE = Candidate(Variant("simulated"), 1, 2)


@pytest.fixture
def made(compose, tmp_path):
    def make(*settings: str, manifest: Manifest = MANIFEST) -> Trials:
        config = compose("job=tune", *settings)
        config.mark_typed(typed_keys(settings))
        return Trials(config, tmp_path, {}, manifest)

    return make


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """Each run's number of pictures; 100 pictures take a second, and nobody starts Ray."""
    counts: list[int] = []
    model = SimpleNamespace(spec=SimpleNamespace(sha256="f" * 64), is_simulated=False)

    def evaluate(config, there, data, pictures, scratch, listener):
        counts.append(pictures)
        evaluation = SimpleNamespace(ap={"official": {"hard": 0.5}}, failures=())
        timeline = Timeline(1, 0.0, [(pictures / 100, pictures)])
        return None, SimpleNamespace(timeline=timeline, evaluation=evaluation)

    monkeypatch.setattr(Variant, "model", lambda self, config: model)
    there = SimpleNamespace(models=[model])
    monkeypatch.setattr(module.execution, "start", lambda *_: contextlib.nullcontext(there))
    monkeypatch.setattr(module, "evaluate_and_forget", evaluate)
    return counts


def test_a_run_takes_as_many_pictures_as_fill_its_time(made, runs):
    standing = Standing(ONE)
    made().measure(standing, 3.0, False)
    # A few first; so few take too little time, and the next ones go by their rate.
    assert runs[0] == 16 and 300 <= runs[-1] <= 350 and len(runs) == 2
    assert (standing.rate, standing.seconds, standing.reason) == (pytest.approx(100), 3.0, "")
    runs.clear()
    made().measure(standing, 6.0, False)
    assert runs == [600]  # its rate is known


def test_every_picture_once_gives_the_ap(made, runs):
    assert made().accuracy(ONE.variant) == Found(100.0, {"hard": 0.5})
    assert runs == [40]


def test_what_was_found_is_kept(made, runs, tmp_path, compose):
    first = made("model.batch=2", "dataset.limit=40")
    first.write()
    standing = Standing(ONE)
    first.measure(standing, 3.0, False)
    first.accuracy(ONE.variant)
    count = len(runs)

    # The command that goes on has typed nothing of it; what was typed then still counts.
    config = compose("job=tune", "model.batch=2", "dataset.limit=40")
    config.mark_typed(frozenset(["resume"]))
    again = Trials(config, tmp_path, {}, MANIFEST)
    assert config.typed() == {"model.batch", "dataset.limit", "resume"}
    assert len(again) == 2
    other = Standing(ONE)
    again.measure(other, 3.0, False)
    assert (other.rate, len(runs)) == (standing.rate, count)
    again.measure(other, 3.0, True)  # again is another run
    assert len(runs) == count + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["model.width=64"], "model.width was 800, is 64"),
        (["eval=guide"], "eval.protocol was official, is guide"),
        ([], "pictures was"),
    ],
)
def test_what_is_of_another_run_is_refused(made, change, words):
    made().write()
    manifest = MANIFEST if change else Manifest(MANIFEST.items[:3], 0, 0)
    with pytest.raises(UserError, match=f"of a run of other settings, {words}"):
        made(*change, manifest=manifest)


def test_a_damaged_file_or_none_is_refused(made, tmp_path):
    with pytest.raises(UserError, match="holds no trials yet"):
        made("resume=x")
    for content in ("{", "[]", '{"identity": {}, "trials": {}}'):
        (tmp_path / TRIALS).write_text(content)
        with pytest.raises(UserError, match=r"trials\.json: damaged"):
            made()


def test_another_file_is_another_run(made, runs, monkeypatch):
    trials = made()
    trials.accuracy(ONE.variant)
    other = SimpleNamespace(spec=SimpleNamespace(sha256="0" * 64), is_simulated=False)
    monkeypatch.setattr(Variant, "model", lambda self, config: other)
    assert len(made()) == 1
    made().accuracy(ONE.variant)
    assert runs == [40, 40]


def test_a_candidate_that_fails_says_why(made, runs, monkeypatch, tmp_path):
    errors = iter(
        [UserError("no memory"), StoppedError("no device is left", ExitCode.INTERNAL),
         DiskFullError("the disk is full")]
    )  # fmt: skip

    def fail(*_):
        raise next(errors)

    monkeypatch.setattr(module, "evaluate_and_forget", fail)
    trials = made()
    assert trials.accuracy(Variant("openvino")) == Found(reason="no memory")
    standing = Standing(ONE, rate=5.0)
    trials.measure(standing, 3.0, True)
    assert (standing.rate, standing.reason) == (None, "no device is left")
    with pytest.raises(DiskFullError):
        trials.accuracy(Variant("torch"))
    assert len(json.loads((tmp_path / TRIALS).read_text())["trials"]) == 2


def test_a_run_in_which_every_picture_fails_has_no_rate(made, runs, monkeypatch):
    failures = tuple((item.id, "no picture") for item in MANIFEST.items)
    report = SimpleNamespace(
        timeline=Timeline(1, 0.0, [(1.0, 40)]), evaluation=SimpleNamespace(failures=failures)
    )
    monkeypatch.setattr(module, "evaluate_and_forget", lambda *_: (None, report))
    assert made().accuracy(ONE.variant).reason == "every picture failed: no picture"

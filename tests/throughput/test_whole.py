"""Evaluations whose files nobody keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cfdist import execution
from cfdist.throughput import whole
from cfdist.widerface.manifest import Manifest, WorkItem

MANIFEST = Manifest(tuple(WorkItem(f"e/{i}", f"{i}.jpg", 9) for i in range(3)), 0, 0)


@pytest.mark.parametrize(
    ("pictures", "keys", "passes"),
    [(2, ["e/0", "e/1"], 1), (4, ["e/0", "e/1", "e/2", "e/0"], 2)],
)
def test_as_many_pictures_as_wanted_and_no_files(
    compose, monkeypatch, tmp_path, pictures, keys, passes
):
    there = SimpleNamespace(models=["model"], plan=None)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "old").touch()  # of a run that was killed

    def evaluate(task, listener):
        assert [path.name for path in scratch.iterdir()] == []
        (scratch / "journal").touch()
        return listener

    monkeypatch.setattr(whole, "evaluate_manifest", evaluate)
    monkeypatch.setattr(execution, "run_identity", lambda *_: "identity")
    found = whole.evaluate_and_forget(
        compose("job=tune"), there, ({}, MANIFEST), pictures, scratch, "report"
    )
    task, report = found
    assert report == "report" and task.style == "official"
    assert [item.id for item in task.manifest.items] == keys
    assert task.manifest.passes == passes
    assert not scratch.exists()

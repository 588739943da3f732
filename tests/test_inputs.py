"""From the configuration to the pictures and their ground truth."""

from __future__ import annotations

import os
import zipfile

import cv2
import numpy as np
import pytest

from cfdist import inputs
from cfdist.errors import UserError
from cfdist.storage import place_of
from cfdist.widerface.manifest import WorkItem


def test_the_sample_set_is_found_without_any_folder(compose):
    config = compose("dataset.limit=3").dataset
    truth = inputs.find_ground_truth(config)
    manifest = inputs.find_pictures(config, truth)
    assert [item.id for item in manifest.items] == list(truth)[:3]


def test_the_ground_truth_is_read_once(compose):
    config = compose().dataset
    assert inputs.find_ground_truth(config) is inputs.find_ground_truth(config)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["dataset.ground_truth=x"], "the sample set has its own"),
        (["dataset=wider_val"], "dataset.ground_truth: not given"),
        (
            ["dataset=wider_val", "dataset.ground_truth=nowhere"],
            "dataset.ground_truth=nowhere: no such folder or archive; give",
        ),
    ],
)
def test_a_missing_ground_truth_is_named(compose, overrides, reason):
    with pytest.raises(UserError, match=reason):
        inputs.find_ground_truth(compose(*overrides).dataset)


def test_the_sample_set_has_no_labels(compose):
    dataset = compose().dataset
    assert inputs.find_face_labels(dataset, inputs.find_ground_truth(dataset)) == {}


def test_missing_pictures_are_named(compose):
    truth = inputs.find_ground_truth(compose().dataset)
    with pytest.raises(UserError, match=r"dataset.root: not given"):
        inputs.find_pictures(compose("dataset=wider_val").dataset, truth)
    with pytest.raises(UserError, match=r"dataset.root=nowhere: no such folder"):
        inputs.find_pictures(compose("dataset=wider_val", "dataset.root=nowhere").dataset, truth)


def test_an_installed_program_keeps_its_cache_with_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "CHECKOUT", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert inputs._cache_folder() == tmp_path / "cfdist"
    monkeypatch.setattr(inputs, "CHECKOUT", tmp_path)
    assert inputs._cache_folder() == tmp_path / ".cache"


def test_what_becomes_of_damaged_pictures_is_configured(compose):
    truth = inputs.find_ground_truth(compose().dataset)
    for word, used in (("fail", False), ("use", True)):
        config = compose("dataset.limit=1", f"dataset.damaged={word}").dataset
        assert [one.use_damaged for one in inputs.find_pictures(config, truth).items] == [used]


def test_prediction_files_may_lie_in_a_folder_an_archive_or_at_a_uri(tmp_path):
    folder, scratch = tmp_path / "p", tmp_path / "scratch"
    (folder / "e").mkdir(parents=True)
    (folder / "e" / "a.txt").write_text("a")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(folder / "e" / "a.txt", "e/a.txt")
    for source in (folder, tmp_path / "p.zip", f"file://{folder}", f"file://{tmp_path}/p.zip"):
        if source != folder:  # what a killed run has left
            scratch.mkdir()
            (scratch / "old.txt").touch()
        with inputs.prediction_folder(str(source), scratch) as found:
            assert not (found / "old.txt").exists()
            assert (found / "e" / "a.txt").read_text() == "a"
            assert scratch.exists() == (found != folder)
        assert not scratch.exists()
    (scratch / "e").mkdir(parents=True)
    (scratch / "e" / "b.txt").write_text("of a run that was killed")
    with inputs.prediction_folder(str(tmp_path / "p.zip"), scratch) as found:
        assert [path.name for path in found.rglob("*.txt")] == ["a.txt"]
    with (
        pytest.raises(UserError, match=f"^file://{folder}/e/a.txt: line 3"),
        inputs.prediction_folder(f"file://{folder}", scratch) as found,
    ):
        raise UserError(f"{found}/e/a.txt: line 3")
    for wrong, reason in ((None, "not given"), ("file:///nowhere", "No such file.*; give the")):
        with (
            pytest.raises(UserError, match=f"^predictions.*{reason}"),
            inputs.prediction_folder(wrong, scratch),
        ):
            pass
    assert not scratch.exists()


def test_picture_sizes_are_those_that_files_and_archives_tell(tmp_path):
    content = cv2.imencode(".jpg", np.zeros((40, 70, 3), np.uint8))[1].tobytes()
    plain, late = tmp_path / "plain.jpg", tmp_path / "late.jpg"
    plain.write_bytes(content)
    # The header comes after more application data than is read at first.
    padding = b"\xff\xe5" + (60_000).to_bytes(2, "big") + bytes(59_998)
    late.write_bytes(content[:2] + padding + content[2:])
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(content[:20])
    packed = tmp_path / "set.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("e/packed.jpg", content)
    os.mkfifo(tmp_path / "pipe.jpg")  # nobody ever writes into it
    places = {
        "e/plain": str(plain),
        "e/late": str(late),
        "e/packed": place_of(str(packed), "e/packed.jpg"),
        "e/gone": str(tmp_path / "no.jpg"),
        "e/pipe": str(tmp_path / "pipe.jpg"),
        "e/cut": str(cut),
        "e/lost": place_of(str(packed), "e/no.jpg"),
    }
    items = [WorkItem(id, path, 1) for id, path in places.items()]
    sizes = inputs.picture_sizes(items)
    assert sizes == dict.fromkeys(["e/plain", "e/late", "e/packed"], (70, 40))

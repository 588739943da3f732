"""`job=detect` on what people have in their folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cfdist.coco import KEY_POINTS
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from tests.end_to_end.test_api import run_program


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def lines_of(folder: Path) -> dict[str, dict]:
    text = (folder / "detections.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    assert [one["path"] for one in found] == sorted(one["path"] for one in found)
    return {one["path"]: one for one in found}


@pytest.fixture
def photos(tmp_path) -> tuple[Path, Path]:
    """A folder with one picture in many forms, and that picture: people, one in the foreground."""
    pictures = sorted((ensure_sample(SAMPLE_FOLDER).root).rglob("*.jpg"))
    largest = max(pictures, key=lambda path: path.stat().st_size)
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    picture = Image.open(largest).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left, to be shown turned to the right
    picture.save(folder / "plain.png")
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "turned.png", exif=exif)
    picture.convert("L").save(folder / "grey.jpg", quality=95)
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    picture.save(folder / "first.gif")
    picture.resize((1, 1)).save(folder / "tiny.png")
    shutil.copy(largest, folder / "a" / "ü 人.jpg")
    shutil.copy(pictures[0], folder / "b" / "ü 人.jpg")
    (folder / "cut.jpg").write_bytes(largest.read_bytes()[:2000])
    (folder / "empty.jpg").touch()
    (folder / "note.txt").write_text("no picture")
    with open(os.fsencode(folder) + b"/\xff.jpg", "wb") as file:
        file.write(largest.read_bytes())
    return folder, largest


def test_a_folder_of_all_kinds(command, photos, tmp_path):
    folder, largest = photos
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    done = command("job=detect", "input=photos", "output_dir=photos/out", "devices=2")
    assert done.returncode == 3, done.stderr
    out = folder / "out"
    found = lines_of(out)
    assert set(found) == {
        *("a/ü 人.jpg", "b/ü 人.jpg", "cmyk.jpg", "cut.jpg", "empty.jpg", "first.gif", "grey.jpg"),
        *("plain.png", "tiny.png", "turned.png", "\\xff.jpg"),
    }
    failed = {name for name, one in found.items() if one["faces"] is None}
    assert failed == {"cut.jpg", "empty.jpg", "\\xff.jpg"}
    results = json.loads((out / "results.json").read_text())
    assert results["pictures"] == {"total": 11, "done": 8, "failed": 3}
    assert {one["picture"] for one in results["failures"]} == failed
    assert results["provenance"]["dataset"] is None
    assert any("left out: 1 other file in input=photos" in note for note in results["notes"])

    # The same picture, however it is stored, has the same faces.
    plain = found["plain.png"]
    assert len(plain["faces"]) > 0
    assert (plain["width"], plain["height"]) == Image.open(largest).size
    assert {**found["turned.png"], "path": "plain.png"} == plain
    sure = [face for face in plain["faces"] if face["score"] > 0.65]
    assert sure and all(len(face["landmarks"]) == 5 for face in sure)
    for name in ("a/ü 人.jpg", "cmyk.jpg"):  # the last bits of a decoder's differ
        boxes = np.array([face["box"] for face in found[name]["faces"]])
        there = [np.abs(boxes - face["box"]).max(axis=1).min() < 4 for face in sure]
        assert np.mean(there) > 0.8, name
    for name in ("grey.jpg", "first.gif"):  # other pixels: other faces, too
        assert found[name]["width"] == plain["width"]
        assert found[name]["faces"]

    # COCO says the same.
    coco = json.loads((out / "coco.json").read_text(encoding="utf-8"))
    assert {one["file_name"] for one in coco["images"]} == set(found) - failed
    assert coco["categories"][0]["keypoints"] == list(KEY_POINTS)
    names = {one["id"]: one["file_name"] for one in coco["images"]}
    for note in coco["annotations"]:
        x, y, w, h = note["bbox"]
        boxes = [face["box"] for face in found[names[note["image_id"]]]["faces"]]
        assert np.abs(np.array(boxes) - [x, y, x + w, y + h]).max(axis=1).min() < 0.02
    assert len(coco["annotations"]) == results["faces"]

    # The copies, in the same folders; the pictures are as they were.
    copies = {path.relative_to(out / "annotated").as_posix() for path in out.rglob("*.*g")}
    expected = set(found) - failed - {"first.gif"} | {"first.gif.png"}
    assert copies & expected == expected
    for name in ("plain.png", "turned.png"):
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        copy = cv2.imread(str(out / "annotated" / name), flags)
        original = cv2.imread(str(folder / "plain.png"))
        assert copy.shape == original.shape
        x, y, right, _ = map(round, plain["faces"][0]["box"])
        assert (copy[y, (x + right) // 2] != original[y, (x + right) // 2]).any()
    assert {path: path.read_bytes() for path in before} == before

    # Again, with the first run's copies inside of the input, other devices and another batch.
    again = command(
        *("job=detect", "input=photos", "output_dir=again", "model.batch=4", "devices=1"),
        *("detect.annotate=false", "detect.threshold=0.3"),
    )
    assert again.returncode == 3, again.stderr
    assert not (tmp_path / "again" / "annotated").exists()
    more = lines_of(tmp_path / "again")
    assert set(more) == set(found)
    kept = [face for face in more["plain.png"]["faces"] if face["score"] >= 0.5]
    assert len(kept) == len(plain["faces"])


PROGRAM = """
from cfdist import InputError, detect

run = detect({"input": "photos/plain.png", "output_dir": "one", "detect.annotate": True})
assert run.exit_code == 0 and not run.failures
(faces,) = run.faces.values()
assert (run.output_dir / "annotated" / "plain.png").is_file()
print(len(faces), [round(value) for value in faces[0].box], len(faces[0].landmarks))
for settings in ({}, {"input": "nowhere"}, {"input": "photos", "backend": "simulated"}):
    try:
        detect(settings)
    except InputError as error:
        print(str(error).partition(";")[0])
"""


def test_a_run_that_ends_early_keeps_what_it_has_found(command, photos, tmp_path):
    folder, largest = photos
    (tmp_path / "in").mkdir()
    for name in "abcdefgh":
        shutil.copy(largest, tmp_path / "in" / f"{name}.jpg")
    shutil.copy(folder / "cut.jpg", tmp_path / "in" / "z.jpg")
    run = ("job=detect", "input=in", "output_dir=out", "devices=1", "detect.annotate=false")
    done = command(*run, "on_error=fail")
    assert done.returncode == 3, done.stderr
    assert "z.jpg" in done.stderr
    partial = tmp_path / "out" / "detections.partial.jsonl"
    kept = partial.read_text().splitlines()
    assert kept
    assert f"{len(kept)} of 9 pictures are in {partial}" in done.stdout
    assert done.stderr.endswith("; job=detect begins anew when it is called again\n")
    refused = command(*run, "resume=out")
    assert refused.returncode == 2 and "job=detect does not read it" in refused.stderr
    assert not (tmp_path / "out" / "detections.jsonl").exists()
    assert command(*run).returncode == 3
    assert not partial.exists()
    whole = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    assert set(kept) <= set(whole)
    assert len(whole) == 9


def test_one_picture_from_python(photos, tmp_path):
    done = run_program(PROGRAM, tmp_path)
    assert done.returncode == 0, done.stderr
    faces, missing, nowhere, simulated = done.stdout.splitlines()
    assert faces.endswith(" 5")
    assert missing == "input: not given"
    assert nowhere == "input=nowhere: no such file or folder"
    assert simulated.startswith("backend=simulated: the simulated backend runs no model")

"""Pictures to calibrate with: spread over those given, and never an evaluated one."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfdist.errors import UserError
from cfdist.quantization import calibration
from cfdist.quantization.calibration import find_calibration
from cfdist.sample.pictures import Picture
from cfdist.widerface.manifest import WorkItem


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    assert cv2.imwrite(str(path), values)
    return path


@pytest.fixture
def evaluated(tmp_path) -> list[WorkItem]:
    paths = [picture(tmp_path / "set" / f"{i}_Event_{i}.jpg", i) for i in range(4)]
    return [WorkItem(f"0--E/{path.stem}", str(path), path.stat().st_size) for path in paths]


@pytest.fixture
def others(tmp_path) -> Path:
    for i in range(10):
        picture(tmp_path / "others" / f"{i}.jpg", 100 + i)
    return tmp_path / "others"


@pytest.mark.parametrize(
    ("count", "names"), [(3, ["0", "3", "6"]), (10, list("0123456789")), (64, list("0123456789"))]
)
def test_they_are_taken_from_all_over_the_folder(others, evaluated, count, names):
    found = find_calibration(str(others), count, evaluated)
    assert [Path(item.path).stem for item in found.items] == names
    assert found.count == len(names)


def test_the_digest_is_that_of_the_contents(others, evaluated, tmp_path):
    digest = find_calibration(str(others), 4, evaluated).digest()
    shutil.copytree(others, tmp_path / "copy")
    assert find_calibration(f"{tmp_path}/copy/*.jpg", 4, evaluated).digest() == digest
    assert find_calibration(str(others), 5, evaluated).digest() != digest
    drawn = {find_calibration(None, count, evaluated).digest() for count in (4, 5)}
    assert len(drawn | {digest}) == 3


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("1_Event_1.jpg", None),  # the name says it
        ("deep/2_EVENT_2.png", None),
        ("renamed.jpg", 3),  # the content does
        ("renamed_and_in_a_folder/x.jpg", 0),
    ],
)
def test_an_evaluated_picture_among_them_is_refused(others, evaluated, name, source):
    if source is None:
        picture(others / name, 55)
    else:
        (others / name).parent.mkdir(exist_ok=True)
        shutil.copy(evaluated[source].path, others / name)
    with pytest.raises(UserError) as error:
        find_calibration(str(others), 3, evaluated)
    assert f"quantize.calibration={others}: holds 1 of the 4 pictures" in str(error.value)
    assert name in str(error.value)


def test_an_evaluated_picture_in_an_archive_is_refused(others, evaluated, tmp_path):
    shutil.copy(evaluated[2].path, others / "renamed.jpg")
    archive = shutil.make_archive(str(tmp_path / "others"), "zip", others)
    for given in (archive, f"file://{archive}", f"file://{others}"):
        with pytest.raises(UserError, match=r"holds 1 of the 4 pictures.*renamed\.jpg"):
            find_calibration(given, 3, evaluated)


def test_what_cannot_be_used_is_refused(others, evaluated, spec, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, words in (("empty", "holds no picture"), ("nowhere", "no such file or folder")):
        with pytest.raises(UserError, match=f"^quantize.calibration={tmp_path}/{given}: {words}"):
            find_calibration(f"{tmp_path}/{given}", 3, evaluated)
    (others / "4.jpg").write_bytes(b"no picture")
    found = find_calibration(str(others), 10, evaluated)
    with pytest.raises(UserError, match=r"^quantize.calibration: .*4.jpg: .*; remove it"):
        list(found.letterboxed(spec(height=64, width=64)))


def test_drawn_pictures_are_letterboxed_like_files(tmp_path, spec, monkeypatch):
    paths = [picture(tmp_path / "lossless" / f"{i}.png", i) for i in range(2)]
    drawn = [cv2.imread(str(path)) for path in paths]
    monkeypatch.setattr(calibration, "further_picture", lambda i: Picture(drawn[i], None))
    found = find_calibration(None, 2, [])
    assert (found.count, list(found.items)) == (2, [])
    model = spec(height=64, width=64)
    files = find_calibration(str(tmp_path), 2, [])
    for a, b in zip(found.letterboxed(model), files.letterboxed(model), strict=True):
        assert (a == b).all()

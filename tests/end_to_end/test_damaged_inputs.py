"""Files that are damaged, too large or no files at all: said, and never waited for."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cfdist.detections import Detections, from_arrow
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.preprocess import MAX_PIXELS
from cfdist.sample import ensure_sample
from cfdist.widerface.ground_truth import GROUND_TRUTH_FILES, load_ground_truth

FAST = ("backend=openvino", "devices=1", "model.height=320", "model.width=320", "model.batch=4")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def png_header(side: int) -> bytes:
    parts = [
        b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(bytes(1_000_000)),
        b"IEND",
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in parts
    )


def jpeg_header(whole: bytes, side: int) -> bytes:
    at = whole.index(b"\xff\xc0")
    return whole[: at + 5] + struct.pack(">HH", side, side) + whole[at + 9 : at + 400] + b"\xff\xd9"


@pytest.fixture
def pictures(tmp_path) -> tuple[Path, list[str], dict[str, str]]:
    """A data set with a picture of each kind: its folder, its ids, and what should be said."""
    sample = ensure_sample(SAMPLE_FOLDER)
    source = sample.root / "WIDER_val" / "images"
    ids = list(load_ground_truth(sample.ground_truth))[:10]
    images = tmp_path / "root" / "images"
    whole = (source / f"{ids[0]}.jpg").read_bytes()
    half = len(whole) // 2
    contents: dict[int, tuple[bytes, str]] = {
        0: (whole, ""),
        1: (whole + bytes(24) + b"\xff\xda" + b"x" * 50, ""),
        2: (whole + whole[:half], ""),
        3: (whole[:half] + bytes(400) + whole[half + 400 :], "damaged or unusual JPEG: Corrupt"),
        4: (whole[:half] + b"\xff\xd9", "damaged or unusual JPEG: Corrupt JPEG data: premature"),
        5: (jpeg_header(whole, 30000), f"30000x30000 pixels are more than the {MAX_PIXELS}"),
        6: (png_header(30000), f"30000x30000 pixels are more than the {MAX_PIXELS}"),
    }
    for i, (content, _) in contents.items():
        path = images / f"{ids[i]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    os.mkfifo(images / f"{ids[7]}.jpg")
    (images / f"{ids[8]}.jpg").mkdir()
    (images / f"{ids[9]}.jpg").symlink_to("/dev/zero")
    reasons = {ids[i]: reason for i, (_, reason) in contents.items() if reason}
    kinds = ("a named pipe", "a folder", "a device")
    for id, kind in zip(ids[7:], kinds, strict=True):
        reasons[id] = f"cannot be read: is {kind}, not a file"
    return images.parent, ids, reasons


def read(folder: Path) -> tuple[dict, dict[str, Detections]]:
    rows = from_arrow(pq.read_table(folder / "predictions.parquet"))
    return json.loads((folder / "results.json").read_text()), {row.id: row for row in rows}


def dataset(root: Path) -> list[str]:
    truth = ensure_sample(SAMPLE_FOLDER).ground_truth
    return ["dataset=wider_val", f"dataset.root={root}", f"dataset.ground_truth={truth}"]


@pytest.mark.parametrize("where", ["device", "cluster"])
def test_damaged_pictures_fail_or_are_used_and_are_listed(command, tmp_path, pictures, where):
    root, ids, reasons = pictures
    word = {"device": "fail", "cluster": "use"}[where]
    chosen = (f"dataset.damaged={word}", f"preprocess.where={where}", "output_dir=out")
    result = command(*dataset(root), *FAST, *chosen)

    assert result.returncode == 3, result.stderr
    results, found = read(tmp_path / "out")
    damaged = {one["picture"]: one["reason"] for one in results["damaged"]}
    failed = {one["picture"]: one["reason"] for one in results["failures"]}
    assert sorted(damaged) == sorted(ids[3:5])
    assert sorted(failed) == sorted(reasons.keys() - (damaged.keys() if word == "use" else set()))
    for id, reason in (damaged | failed).items():
        assert reason.startswith(reasons[id])
    told = {"fail": "2 pictures have a damaged file and failed", "use": "are used as they decode"}[
        word
    ]
    assert any(told in note for note in results["notes"])
    assert told in result.stdout
    # A picture is whole whatever follows it.
    assert len(found[ids[0]].boxes) > 0
    for id in ids[1:3]:
        np.testing.assert_allclose(found[id].boxes, found[ids[0]].boxes, rtol=0, atol=1e-3)
    assert (found[ids[3]].width > 0) == (word == "use")


def test_no_file_in_place_of_one_is_refused_without_waiting(command, tmp_path):
    sample = ensure_sample(SAMPLE_FOLDER)
    truth = tmp_path / "gt"
    shutil.copytree(sample.ground_truth, truth)
    (truth / GROUND_TRUTH_FILES[2]).unlink()
    os.mkfifo(truth / GROUND_TRUTH_FILES[2])
    id = next(iter(load_ground_truth(sample.ground_truth)))
    prediction = tmp_path / "predictions" / f"{id}.txt"
    prediction.parent.mkdir(parents=True)
    os.mkfifo(prediction)
    score = ("job=score", "predictions=predictions")
    for arguments, name in [
        ((f"model.path={prediction}",), prediction.name),
        ((*score, "dataset.limit=1"), prediction.name),
        ((*score, "dataset=wider_val", f"dataset.ground_truth={truth}"), GROUND_TRUTH_FILES[2]),
    ]:
        result = command(*arguments, timeout=60)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert name in line
        assert "is a named pipe, not a file" in line
        assert re.fullmatch(r"starting job=\w+ \.\.\.\n", result.stdout)

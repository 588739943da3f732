"""Whole commands whose pictures lie in archives and behind URIs, or go through Ray."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from cfdist.files import PARQUET, PREDICTIONS
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample

FAST = (
    *("dataset=wider_val", "dataset.limit=12", "backend=openvino", "devices=1"),
    *("model.height=256", "model.width=256", "model.batch=4"),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """The sample set as a folder, archives, and URIs of both: pictures and ground truth."""
    sample, folder = ensure_sample(SAMPLE_FOLDER), tmp_path_factory.mktemp("sources")
    archives = folder / "WIDER_val.zip", folder / "eval_tools.zip"
    for archive, root, prefix in (
        (archives[0], sample.root / "WIDER_val", "WIDER_val/"),
        (archives[1], sample.ground_truth, "eval_tools/ground_truth/"),
    ):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(root.rglob("*.*")):
                packed.write(path, f"{prefix}{path.relative_to(root)}")
    return {
        "folder": (str(sample.root), str(sample.ground_truth)),
        "archive": (str(archives[0]), str(archives[1])),
        "folder_uri": (f"file://{sample.root}", f"file://{sample.ground_truth}"),
        "archive_uri": (f"file://{archives[0]}", f"file://{archives[1]}"),
    }


def dataset(source: tuple[str, str]) -> list[str]:
    return [f"dataset.root={source[0]}", f"dataset.ground_truth={source[1]}"]


def files(folder: Path) -> dict[str, bytes]:
    paths = [*(folder / PREDICTIONS).rglob("*.txt"), folder / PARQUET]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_same_bytes_come_out_of_folder_archive_and_uri(command, tmp_path, sources):
    for name, source in sources.items():
        where = "cluster" if name == "archive" else "device"
        result = command(
            *FAST, *dataset(source), f"preprocess.where={where}", f"output_dir={name}", timeout=120
        )
        assert result.returncode == 0, result.stderr
    folders = [tmp_path / name for name in sources]
    assert len(files(folders[0])) == 13
    assert all(files(one) == files(folders[0]) for one in folders)
    assert all(results(one)["ap"] == results(folders[0])["ap"] for one in folders)


def test_sources_that_cannot_be_read_are_one_line(command, tmp_path, sources):
    truth = f"dataset.ground_truth={sources['archive'][1]}"
    whole = Path(sources["archive"][0]).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no archive")
    for root, told in {
        "half.zip": "half.zip: is not a zip archive, or a damaged one",
        "text.jpg": "text.jpg: is not a zip archive, or a damaged one",
        "nosuch://bucket/x": "nosuch://bucket/x: Unrecognized filesystem type",
        "file:///nowhere": "file:///nowhere: No such file or directory",
        "s3://name:hush@bucket/x": "dataset.root: this URI holds a key or password",
    }.items():
        result = command(*FAST, f"dataset.root={root}", truth, "output_dir=out", timeout=60)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert told in line
        assert "give " in line
        assert "hush" not in line
        assert not (tmp_path / "out").exists()


def test_the_file_workflow_takes_an_archive(command, tmp_path, sources):
    settings = ["dataset=wider_val", "dataset.limit=2", *dataset(sources["archive"])]
    made = command("job=preprocess", *settings, "preprocess.output=bins", "output_dir=out")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "bins").glob("*.bin"))) == 2

"""Where jobs and configuration come from, in a checkout and once installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cfdist.config.installation import CHECKOUT, COMMAND, CONFIG_FOLDER, group_choices, load_job

PROJECT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("cfdist", "jobs", "conf", "pyproject.toml", "setup.py", "requirements.in", "README.md")


def test_a_checkout_has_its_jobs_and_configuration_beside_the_package():
    assert CHECKOUT == PROJECT
    assert CONFIG_FOLDER == PROJECT / "conf"
    is_own = Path(sys.prefix) == PROJECT / ".venv"
    assert (COMMAND == "./run.sh") == is_own
    assert is_own or COMMAND == "python main.py"
    assert load_job("score").__name__ == "jobs.score"


def test_group_choices():
    assert group_choices("eval") == ["guide", "official"]
    assert group_choices("nosuch") == []


def make_stranger(folder: Path) -> None:
    """A package called `jobs` that must not be imported."""
    (folder / "jobs").mkdir(parents=True)
    (folder / "jobs" / "__init__.py").write_text("raise SystemExit('a stranger was imported')\n")
    (folder / "jobs" / "score.py").touch()


@pytest.mark.slow
def test_a_stranger_s_jobs_are_not_imported(tmp_path):
    make_stranger(tmp_path)
    code = "from cfdist.config.installation import load_job; load_job('score')"
    path = os.pathsep.join([str(tmp_path), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert "a stranger was imported" not in done.stderr
    assert "No module named 'cfdist.jobs'" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The project's wheel, built from a copy: a build leaves folders behind."""
    pytest.importorskip("setuptools")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, "LICENSE"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *options, str(source)], check=True)
    (built,) = folder.iterdir()
    return built


@pytest.mark.slow
def test_a_wheel_holds_one_package_with_everything_in_it(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"cfdist"}
    assert "cfdist/py.typed" in names
    for path in (PROJECT / "cfdist/report/page/templates").iterdir():
        assert path.relative_to(PROJECT).as_posix() in names
    for folder, suffix in (("cfdist", ".py"), ("jobs", ".py"), ("conf", ".yaml")):
        inside = PROJECT if folder == "cfdist" else PROJECT / "cfdist"
        for path in (PROJECT / folder).rglob(f"*{suffix}"):
            name = path.relative_to(PROJECT).as_posix()
            assert (name if inside == PROJECT else f"cfdist/{name}") in names


@pytest.mark.slow
def test_an_installed_cfdist_evaluates_from_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "site", tmp_path / "empty"
    make_stranger(installed)
    empty.mkdir()
    options = ["--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
    assert not (installed / "conf").exists()

    settings = ["job=evaluate", "model.batch=4", "devices=1", "dataset.limit=8", "output_dir=out"]
    done = subprocess.run(
        [sys.executable, str(installed / "bin" / "cfdist"), *settings],
        cwd=empty,
        env={
            **os.environ,
            "PYTHONPATH": str(installed),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((empty / "out" / "results.json").read_text())
    assert results["pictures"] == {"total": 8, "done": 8, "failed": 0}
    assert (empty / "out" / "report.html").is_file()
    # The sample set is the user's: what is installed is nobody's to write to.
    assert (tmp_path / "cache" / "cfdist").is_dir()
    assert not (installed / ".cache").exists()

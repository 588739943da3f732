"""Broken packages are found in another process, with the remedy for how they got there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cfdist.doctor import packages
from cfdist.doctor.packages import remedy_of, try_imports

BROKEN = {
    "raises": "raise ImportError('libx.so.1: cannot open shared object file')",
    "dies": "import os; os.kill(os.getpid(), 11)",
    "exits": "raise SystemExit('not this way')",
    "sound": "__version__ = '1.2.3-build'",
}


@pytest.fixture
def broken(tmp_path, monkeypatch) -> Path:
    for name, code in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_each_package_is_told_apart_whatever_its_import_does(broken):
    found = try_imports([*BROKEN, "json", "not_there"])
    assert found["raises"]["error"] == "ImportError: libx.so.1: cannot open shared object file"
    assert found["dies"]["error"] == "its import ended the process (status -11)"
    assert found["exits"]["error"] == "SystemExit: not this way"
    assert (found["sound"]["version"], found["sound"]["error"]) == ("1.2.3", "")
    assert found["not_there"]["error"].startswith("ModuleNotFoundError")


@pytest.mark.slow
def test_an_import_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")  # a relative one counts from here
    assert try_imports(["hangs"], 0.5)["hangs"]["error"] == "its import took longer than 0.5 s"


def test_the_remedy_is_for_where_the_package_lies(broken, monkeypatch):
    assert remedy_of("raises") == f"take {broken} out of PYTHONPATH; it hides the installed raises"
    pins = {"opencv-python-headless": "5.0", "nothing-here": "2"}
    monkeypatch.setattr(packages, "pins", lambda: pins)
    install = f"{sys.executable} -m pip install"
    again = f"{install} --force-reinstall --no-deps opencv-python-headless==5.0"
    assert remedy_of("cv2") == again
    assert remedy_of("nothing-here") == f"{install} nothing-here==2"


def test_what_is_pinned_and_what_is_not(tmp_path, monkeypatch):
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# a comment\npsutil==0.0.1\n    # via x\nnone-such==3 ; python_version >= '3'\n"
        "other==1 ; sys_platform == 'win32'\n"
    )
    monkeypatch.setattr(packages, "_PINS", file)
    packages.pins.cache_clear()
    try:
        assert packages.pins() == {"psutil": "0.0.1", "none-such": "3"}
        (line,) = packages._other_versions()
    finally:
        packages.pins.cache_clear()
    assert line.state == "note" and line.remedy.endswith(f"-m pip install -r {file}")
    assert "(pinned 0.0.1), none-such missing (pinned 3): not what was tested" in line.found


def test_onnxruntime_is_not_missed_where_the_gpu_s_one_has_its_place(monkeypatch):
    there = {"onnxruntime-gpu"}

    def version(name):
        if name not in there:
            raise packages.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(packages, "pins", lambda: {"onnxruntime": "1", "onnx": "2"})
    monkeypatch.setattr(packages.metadata, "version", version)
    (line,) = packages._other_versions()
    assert line.found == "onnx missing (pinned 2): not what was tested"
    there.add("onnxruntime")
    both, _ = packages._other_versions()
    assert both.found.startswith("onnxruntime-gpu is there too") and "uninstall" in both.remedy


def test_a_broken_package_that_the_doctor_needs_ends_it_with_a_table(monkeypatch, capsys):
    def tried(names):
        return {one: {"version": "1", "error": "bad" * (one in ("numpy", "cv2"))} for one in names}

    monkeypatch.setattr(packages, "try_imports", tried)
    packages.findings.cache_clear()
    try:
        assert packages.stop_early()
    finally:
        packages.findings.cache_clear()
    shown = capsys.readouterr().out
    assert "\nFAULT numpy            bad\n      -> " in shown
    assert "\nFAULT cv2              needs numpy, which is broken\n" in shown

"""`job=doctor` on hosts that lack something: what it says, and that its remedy helps."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.fakes.ascend import install_atc, install_double, install_npu_smi

SIMULATED = ("job=doctor", "backend=simulated", "backend.latency_ms=0", "dataset.limit=4")
SIZE = ("model.height=64", "model.width=64")


def lines(result: subprocess.CompletedProcess, code: int) -> dict[str, str]:
    """What was looked at -> its line; the screen fits 80 columns but for one long path or word."""
    assert (result.returncode, result.stderr) == (code, ""), result.stdout + result.stderr
    table = [
        one for one in result.stdout.splitlines() if one.startswith(("ok ", "note ", "FAULT "))
    ]
    wide = [one for one in result.stdout.splitlines() if len(one) > 80]
    assert all(len(one[23:].split()) == 1 for one in wide), wide
    return {one[6:22].strip(): f"{one[:6].strip()} {one[23:]}" for one in table}


def stub(folder, name: str, code: str) -> str:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return str(folder)


def test_broken_packages_and_what_is_said_to_do(command, tmp_path, monkeypatch):
    # numpy ends the process: the doctor itself could not go on.
    monkeypatch.setenv(
        "PYTHONPATH", stub(tmp_path / "a", "numpy", "import os; os.kill(os.getpid(), 11)")
    )
    result = command("job=doctor")
    assert "FAULT its import ended" in lines(result, 1)["numpy"]
    assert f"-> take {tmp_path / 'a'} out of PYTHONPATH" in " ".join(result.stdout.split())
    # The remedy; now ONNX Runtime cannot be imported, and then its session fails.
    for number, code in enumerate(
        (
            "raise ImportError('libx.so.1: cannot open')",
            "__version__ = '1'\nclass SessionOptions:\n    pass\n",
        )
    ):
        folder = tmp_path / f"b{number}"
        monkeypatch.setenv("PYTHONPATH", stub(folder, "onnxruntime", code))
        result = command("job=doctor", "backend=onnxruntime", *SIZE, "dataset.limit=4")
        assert lines(result, 1)["onnxruntime"].startswith(("FAULT", "note"))
        assert f"take {folder} out of PYTHONPATH" in " ".join(result.stdout.split())
        assert "job=evaluate cannot run" in result.stdout
    monkeypatch.delenv("PYTHONPATH")
    found = lines(command("job=doctor", "backend=onnxruntime", *SIZE, "dataset.limit=4"), 0)
    assert found["onnxruntime"] == "ok infers a black picture"
    assert found["Ray"].startswith("ok starts here: 1 device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b0", "b1"]  # no outputs


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="this host does not let a test make a mount namespace",
)
def test_a_host_without_shared_memory_and_the_remedy(tmp_path):
    doctor = " ".join([sys.executable, str(PROJECT / "main.py"), *SIMULATED])
    script = f"""
        mount -t tmpfs -o ro tmpfs /dev/shm && {doctor} && echo done
        mount -t tmpfs -o size=2g tmpfs /dev/shm && {doctor} && echo done
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert done.stderr == ""
    before, after, rest = done.stdout.split("\ndone\n")
    assert "note  /dev/shm         cannot be written to (Read-only file system)" in before
    assert "mount -t tmpfs -o size=2g tmpfs\n         /dev/shm" in before
    # A run starts all the same, as it did when it was tried.
    assert before.endswith(can_run := "job=evaluate can run as configured")
    assert "\nok    /dev/shm" in after and after.endswith(can_run) and rest == ""


def test_an_ascend_host(command, tmp_path, monkeypatch):
    install_npu_smi(monkeypatch, tmp_path / "bin")
    model = ("job=doctor", "backend=om", "model.path=om/centerface_bs1.om", *SIZE)
    found = lines(command(*model), 1)
    assert found["ais_bench"] == "FAULT aclruntime is not installed"
    install_double(monkeypatch, "later")
    install_atc(monkeypatch, tmp_path / "bin")
    made = command("job=convert", "convert.output=om", "convert.batches=[1]", *SIZE)
    assert made.returncode == 0, made.stderr
    found = lines(command(*model), 0)
    assert found["NPUs"] == "ok 2 x Ascend310P3, all OK"
    assert found["ais_bench"] == "ok the later generation"
    assert found["om"] == "ok infers a black picture"
    assert found["Ray"].startswith("ok starts here: 2 devices")


def test_what_a_person_gets_wrong_is_bad_input(warm_command):
    for setting in ("resume=auto", "predictions=x", "download.to=x"):
        result = warm_command("job=doctor", setting)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
        assert "job=doctor does not read it" in result.stderr

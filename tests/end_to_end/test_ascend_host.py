"""An Ascend host as people have it: ATC that fails or hangs, odd chips, ais_bench's command line.

No command here starts Ray, but for the two that run an OM of several batches.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.ascend import install_atc, install_double, install_npu_smi

SIZE = ("model.height=64", "model.width=64")
CALIBRATE = ("job=convert", "convert.output=om", *SIZE)
CONVERT = (*CALIBRATE, "convert.batches=[1,4]")


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture
def host(monkeypatch, tmp_path) -> Path:
    """A host with atc, npu-smi and two chips; gives the folder of its tools."""
    install_atc(monkeypatch, tmp_path / "bin")
    install_npu_smi(monkeypatch, tmp_path / "bin")
    monkeypatch.delenv("CFDIST_PYTHONPATH", raising=False)
    return tmp_path / "bin"


@pytest.fixture
def host_with_ais_bench(host, monkeypatch) -> Path:
    install_double(monkeypatch)
    return host


def replace_tool(host: Path, name: str, script: str) -> None:
    (host / name).write_text(f"#!/bin/bash\n{script}\n")


def refused(done) -> str:
    """The one line of a refused command."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


E10001 = """\
echo "ATC run failed, Please check the detail log, Try 'atc --help' for more information"
echo "E10001: 2023-03-30 Value [-1] for parameter [image] is invalid. Reason: no shape."
echo "        Solution: Try again with a valid argument."
echo "        TraceBack (most recent call last):"
for i in 1 2 3 4 5 6; do echo "        [Frame$i] internal"; done; exit 255"""


def test_an_atc_that_fails_says_why_and_leaves_its_log_alone(command, tmp_path, host):
    replace_tool(host, "atc", E10001)
    message = refused(command(*CONVERT, "output_dir=out"))
    assert "E10001: " in message
    assert "limit_s" not in message
    assert "Value [-1] for parameter [image]" in message
    assert "Solution: Try again with a valid argument." in message
    assert "Frame" not in message
    log = tmp_path / "out" / "atc_bs1.log"
    assert str(log) in message
    assert "[Frame6] internal" in log.read_text()
    assert not (tmp_path / "om").exists()
    # The same folder takes the next try.
    install_atc(pytest.MonkeyPatch(), host)
    done = command(*CONVERT, "output_dir=out")
    assert done.returncode == 0, done.stderr
    assert "(2 of 2): made in " in done.stdout


def test_an_atc_that_hangs_ends_with_its_children(command, tmp_path, host):
    replace_tool(host, "atc", f"sleep 300 & echo $! >{tmp_path}/child; wait")
    message = refused(command(*CONVERT, "convert.limit_s=1", timeout=60))
    assert "no answer within 1 s" in message
    assert "convert.limit_s=SECONDS gives it longer" in message
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    deadline = time.monotonic() + 10  # the kernel ends it when it gets a processor

    def lives() -> bool:
        with contextlib.suppress(OSError):
            return child.read_text().split()[2] != "Z"
        return False

    while lives() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives()
    assert not (tmp_path / "om").exists()


def test_atc_gets_the_callers_pythonpath_and_further_options(command, tmp_path, host, monkeypatch):
    monkeypatch.setenv("CFDIST_PYTHONPATH", "/the/callers")
    replace_tool(host, "atc", f'echo "$PYTHONPATH" "$@" >{tmp_path}/seen; exit 1')
    refused(command(*CONVERT, "convert.extra=[--precision_mode=force_fp16,--op_debug_level=1]"))
    path, *words = (tmp_path / "seen").read_text().split()
    assert path == "/the/callers"
    assert words[-2:] == ["--precision_mode=force_fp16", "--op_debug_level=1"]
    message = refused(command(*CONVERT, "convert.extra=[--soc_version=Ascend310]"))
    assert "convert.extra: --soc_version=Ascend310 is --soc_version of ATC" in message


def test_bare_chips_of_an_atlas_a3(command, tmp_path, host):
    table = tmp_path / "table.txt"
    table.write_text(
        "| NPU   Name                | Health        | Power(W)    Temp(C) |\n"
        "| Chip  Phy-ID              | Bus-Id        | AICore(%)           |\n"
        "+===========================+===============+=====================+\n"
        "| 0     Ascend910           | OK            | 166.5       38      |\n"
        "| 0     0                   | 0000:9D:00.0  | 0           0       |\n"
    )
    answer = f'[ "$*" = info ] && exec cat {table}'
    replace_tool(host, "npu-smi", f"{answer}\nexit 1")
    assert "convert.soc_version=Ascend910_9391" in refused(command(*CONVERT))
    board = "NPU Name : 9391\\nChip Name : Ascend910\\n"
    replace_tool(host, "npu-smi", f"{answer}\nprintf '{board}'")
    done = command(*CONVERT, "convert.dry_run=true")
    assert done.stdout.count("--soc_version=Ascend910_9391") == 2, done.stderr


def test_what_a_dry_run_prints_makes_the_oms_in_a_shell(command, tmp_path, host):
    dry = command(*CONVERT, "convert.aipp=true", "convert.dry_run=true")
    assert dry.returncode == 0, dry.stderr
    # The authors' file declares another size, so that ATC is given a copy.
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "om"}
    assert {path.suffix for path in (tmp_path / "om").iterdir()} == {".onnx", ".aippconfig"}
    subprocess.run(["bash", "-e", "-c", dry.stdout], cwd=tmp_path, check=True, timeout=60)
    made = {path.name for path in (tmp_path / "om").glob("*.om")}
    assert made == {"centerface_bs1_aipp.om", "centerface_bs4_aipp.om"}

    sweep = command(
        "-m", *CONVERT, "convert.aipp=true,false", "convert.dry_run=true", "output_dir=sweep"
    )
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.stdout.count("\natc ") == 4
    assert not (tmp_path / "sweep").exists()
    calibration = command(*CALIBRATE, "convert.calibration=3", "convert.dry_run=true")
    assert "written by this command without convert.dry_run\namct_onnx " in calibration.stdout
    assert not list((tmp_path / "om").rglob("*.bin"))


def test_calibration_input_for_int8(command, tmp_path):
    from cfdist.config import compose
    from cfdist.inputs import find_ground_truth, find_pictures
    from cfdist.preprocess import read_into

    done = command(*CALIBRATE, "convert.calibration=3")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "om").rglob("*.bin")
    found = np.fromfile(path, "<f4").reshape(3, 3, 64, 64)
    assert f"--data_dir {path.parent.relative_to(tmp_path)}" in done.stdout
    config = compose().dataset
    row = np.empty((64, 64, 3), np.uint8)
    items = find_pictures(config, find_ground_truth(config)).items
    for item, tensor in zip(items[:3], found, strict=True):
        read_into(item.path, row)
        np.testing.assert_array_equal(tensor, row[..., ::-1].transpose(2, 0, 1))
    message = refused(command(*CALIBRATE, "convert.calibration=100000"))
    assert f"has {len(items)} pictures here" in message


def test_one_om_runs_at_each_of_its_batches(command, tmp_path, host_with_ais_bench):
    host = host_with_ais_bench
    done = command(*CONVERT, "convert.dynamic=true", "convert.aipp=true")
    assert done.returncode == 0, done.stderr
    run = ("model.path=om/centerface_dynamic_aipp.om", *SIZE, "cluster.dashboard=false")
    replace_tool(host, "npu-smi", (host / "npu-smi").read_text().replace("OK      ", "Warning ", 1))
    done = command(
        "job=benchmark", *run, "model.batch=4", "benchmark.parts=[inference]", "benchmark.loops=3",
        "output_dir=four",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "its health is Warning; the run may take it" in done.stdout
    inference = json.loads((tmp_path / "four" / "results.json").read_text())["benchmark"][
        "inference"
    ]
    means = [device["device_ms"]["mean"] for device in inference["devices"]]
    rate = sum(1000 * 4 / mean for mean in means)
    assert inference["device_time_pictures_per_second"] == pytest.approx(rate)
    assert f"by the devices' own time alone {rate:.1f} pictures/s" in done.stdout
    typed = command("job=benchmark", *run, "model.batch=4", "model.mean=[1,2,3]")
    assert "model.mean: has no effect on this run" in refused(typed)
    message = refused(command("job=benchmark", *run, "model.batch=2", "output_dir=two"))
    assert "model.batch=2 is none of them" in message


def predictions(folder: Path) -> dict[str, np.ndarray]:
    """Picture -> (n, 5) boxes and scores."""
    files = {
        path.stem: path.read_text().splitlines() for path in folder.glob("predictions/*/*.txt")
    }
    return {
        name: np.array([line.split() for line in lines[2:]], float).reshape(-1, 5)
        for name, lines in files.items()
    }


def test_pictures_at_their_own_size_on_two_chips(command, tmp_path, host_with_ais_bench):
    made = command(
        *("job=convert", "convert.output=om", "convert.batches=[2]", "convert.sizes=dataset"),
        "dataset.limit=6",
    )
    assert made.returncode == 0, made.stderr
    own = (
        *("preprocess.size=own", "cluster.dashboard=false", "model.batch=2", "dataset.limit=9"),
        *("model.peaks=threshold", "model.top_k=null", "model.score=0.02"),
    )
    om = ("backend=om", "model.path=om/centerface_bs{batch}_sizes.om")
    # Of the first nine pictures the last one has a shape of its own.
    message = refused(command(*own, *om, "output_dir=refused"))
    assert re.search(r"has no input of 768x1024 \(rows x columns\), which \S+ needs", message)
    assert "convert.sizes=dataset" in message
    assert not (tmp_path / "refused").exists()
    # What is not known before the run fails by name.
    (tmp_path / "om" / "centerface_bs2_sizes.om.json").unlink()
    npu = command(*own, *om, "devices=2", "output_dir=npu")
    assert npu.returncode == 3, npu.stderr
    assert "768x1024 (rows x columns) is none of the model's input sizes" in npu.stdout
    results = json.loads((tmp_path / "npu" / "results.json").read_text())
    assert results["pictures"] == {"total": 9, "done": 8, "failed": 1}
    assert [device["pictures"] > 0 for device in results["devices"]] == [True, True]

    cpu = command(*own, "backend=onnxruntime", "output_dir=cpu")
    assert cpu.returncode == 0, cpu.stderr
    expected, found = predictions(tmp_path / "cpu"), predictions(tmp_path / "npu")
    assert len(found) == 8
    for name, boxes in found.items():
        np.testing.assert_allclose(boxes, expected[name], atol=0.02)
    assert sum(map(len, found.values())) > 8

    for sizes in ("[640x640,700x640]", "[640x640]", "[640x640,640x640]", "all"):
        message = refused(command("job=convert", f"convert.sizes={sizes}"))
        assert message.startswith("cfdist: convert.sizes")
    assert "rows x columns, multiples of 32" in message


@pytest.fixture
def bins(tmp_path) -> Path:
    folder = tmp_path / "bins"
    folder.mkdir()
    random = np.random.default_rng(1)
    for stem in "abcde":
        random.integers(0, 256, (3, 64, 64)).astype(np.float32).tofile(folder / f"{stem}.bin")
    return folder


def summary_arguments(folder: Path) -> str:
    """What the tool was called with, by its summary."""
    return " ".join(json.loads((folder / "dumpout_bs4_summary.json").read_text())["args"])


def test_the_command_line_of_ais_bench(command, tmp_path, bins, host_with_ais_bench, monkeypatch):
    host = host_with_ais_bench
    for dynamic in ("false", "true"):
        convert = command(*CONVERT, f"convert.dynamic={dynamic}", f"output_dir=made_{dynamic}")
        assert convert.returncode == 0, convert.stderr
    infer = ("job=infer", f"infer.input={bins}", "infer.cli=true", "model.batch=4", *SIZE)
    static = (*infer, "model.path=om/centerface_bs4.om")

    one = command(*static, "output_dir=one", "infer.cli_args=[--outfmt=NPY,--debug=1]")
    assert one.returncode == 0, one.stderr
    two = command(*infer, "model.path=om/centerface_dynamic.om", "devices=2", "output_dir=two")
    assert two.returncode == 0, two.stderr
    assert "5 raw outputs" in two.stdout
    for stem in "abcde":
        (text,) = (tmp_path / "two").rglob(f"{stem}_3.bin")
        first = np.load(tmp_path / "one" / "dumpout_bs4" / f"{stem}_3.npy")
        np.testing.assert_allclose(np.fromfile(text, "<f4"), first.ravel(), atol=1e-4)
    summary = json.loads((tmp_path / "two" / "dumpout_bs4_summary.json").read_text())
    assert summary["NPU_compute_time"]["count"] == 2
    assert len(summary["devices"]) == 2

    monkeypatch.setenv("AIS_BENCH_DOUBLE_DEVICES", "1")
    message = refused(command(*static, "devices=[0,1]", "output_dir=broken"))
    assert "chip 1: " in message
    assert "[ERROR] subprocess run failed" in message
    assert "507033" in message
    assert not list((tmp_path / "broken").rglob("*.bin"))

    monkeypatch.delenv("AIS_BENCH_DOUBLE_DEVICES")
    table = (host / "npu-smi").read_text()
    replace_tool(host, "npu-smi", table.replace("OK      ", "Critical", 1))
    assert command(*static, "output_dir=healthy").returncode == 0
    assert " --device 1 " in f"{summary_arguments(tmp_path / 'healthy')} "

    message = refused(command(*static, "infer.cli_args=[--dev=1]"))
    assert "infer.cli_args: --dev=1 is --device of ais_bench" in message
    by_backend = [one for one in static if one != "infer.cli=true"]
    message = refused(command(*by_backend, "infer.cli_args=[--loop=2]"))
    assert "infer.cli_args: has no effect on this run" in message


def test_a_broken_chip_is_no_reason_to_take_the_cpu(command, host_with_ais_bench):
    host = host_with_ais_bench
    text = (host / "npu-smi").read_text().replace("OK      ", "Critical")
    replace_tool(host, "npu-smi", text)
    message = refused(command("model.batch=1", *SIZE))
    assert "all 2 chips of this host is Critical" in message
    assert os.access(host / "npu-smi", os.X_OK)

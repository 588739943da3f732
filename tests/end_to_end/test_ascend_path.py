"""The whole Ascend path with a strict double of the chips: ONNX, ATC, two NPUs, Ray, AP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.ascend import GENERATIONS, install_atc, install_double, install_npu_smi

SIZE = ("model.height=256", "model.width=256")


@pytest.fixture(params=GENERATIONS)
def ascend_host(request, monkeypatch, tmp_path) -> Path:
    """A host with atc, npu-smi, two chips and one generation of ais_bench; gives the chips' log."""
    install_double(monkeypatch, request.param)
    install_atc(monkeypatch, tmp_path / "bin")
    install_npu_smi(monkeypatch, tmp_path / "bin")
    log = tmp_path / "chips.log"
    monkeypatch.setenv("AIS_BENCH_DOUBLE_LOG", str(log))
    monkeypatch.setenv("AIS_BENCH_DOUBLE_ENGINE", "openvino")
    return log


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_from_onnx_to_ap_on_two_chips(command, tmp_path, ascend_host):
    convert = ("job=convert", "convert.output=om", "convert.batches=[16]", *SIZE)
    for form in ("convert.aipp=false", "convert.aipp=true"):
        done = command(*convert, form)
        assert done.returncode == 0, done.stderr
        assert "made" in done.stdout
    again = command(*convert, "convert.aipp=true")
    assert "up to date" in again.stdout

    cpu = command("backend=openvino", "model.batch=16", *SIZE, "output_dir=cpu")
    assert cpu.returncode == 0, cpu.stderr
    for name, om in (
        ("f32", "model.path=om/centerface_bs{batch}.om"),
        ("aipp", "model.path=om/centerface_bs{batch}_aipp.om"),
    ):
        ascend_host.unlink(missing_ok=True)
        # backend=auto: there are NPUs and ais_bench.
        npu = command(om, "devices=2", "model.batch=16", *SIZE, f"output_dir={name}")
        assert npu.returncode == 0, npu.stderr

        there, here = results(tmp_path / "cpu"), results(tmp_path / name)
        assert here["backend"] == "om"
        assert here["pictures"] == there["pictures"]
        assert here["pictures"]["total"] % 16 != 0  # the last batch is padded
        for protocol, ap in there["ap"].items():
            for difficulty, value in ap.items():
                assert here["ap"][protocol][difficulty] == pytest.approx(value, abs=1e-4)
        for device in here["devices"]:
            assert device["pictures"] > 0
            assert 0 < device["device_ms"]["min"] <= device["batch_ms"]["max"]
        opened = [json.loads(line) for line in ascend_host.read_text().splitlines()]
        # Each actor sees one chip, whose index is 0 there.
        assert sorted(entry["chip"] for entry in opened) == [0, 1]
        assert {entry["index"] for entry in opened} == {0}
        assert len({entry["pid"] for entry in opened}) == 2

    wrong = command("model.path=om/centerface_bs16.om", "model.batch=4", *SIZE)
    assert wrong.returncode == 2, wrong.stderr
    assert "convert.batches=[4]" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1

    many = command("model.path=om/centerface_bs16.om", "model.batch=16", "devices=3", *SIZE)
    assert many.returncode == 2
    assert "Ray sees 2 NPU" in many.stderr

    listed = command(
        "model.path=om/centerface_bs16.om", "model.batch=16", "devices=[1]", "dataset.limit=3",
        *SIZE, "output_dir=one",
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert json.loads(ascend_host.read_text().splitlines()[-1])["chip"] == 1


def test_a_failing_atc_leaves_nothing(command, tmp_path, monkeypatch):
    install_atc(monkeypatch, tmp_path / "bin")
    monkeypatch.setenv("FAKE_ATC_FAIL", "E10001: the chip is not known")
    failed = command("job=convert", "convert.output=om", "convert.soc_version=Ascend310P3", *SIZE)
    assert failed.returncode == 2
    assert "E10001: the chip is not known" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert list((tmp_path / "om").glob("*.om")) == []


def test_a_dry_run_prints_the_command_and_needs_no_atc(command, tmp_path):
    done = command(
        "job=convert", "convert.dry_run=true", "convert.soc_version=Ascend310P3",
        "convert.batches=[1,16]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    note, folder, first, second = done.stdout.splitlines()
    assert note.startswith("# ")
    assert folder == f"cd {tmp_path / 'models'}"
    assert first.startswith("atc --framework=5 --model=")
    assert "--input_shape=input.1:16,3,800,800 --output=centerface_bs16 " in second
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["centerface.onnx"]


@pytest.mark.parametrize("ascend_host", ["later"], indirect=True)
def test_610_real_pictures_on_two_chips(command, tmp_path, ascend_host, shared):
    """610 = 38 * 16 + 2: the last batch is mostly padding. At a small input, to be quick."""
    data = shared / "data" / "wider_val_mini"
    common = (
        "dataset=wider_val", f"dataset.root={data / 'WIDER_val'}",
        f"dataset.ground_truth={data / 'ground_truth'}", "model.batch=16", "devices=2", *SIZE,
    )  # fmt: skip
    done = command(
        "job=convert", "convert.output=om", "convert.batches=[16]", "convert.aipp=true", *SIZE
    )
    assert done.returncode == 0, done.stderr
    for name, backend in (
        ("cpu", ("backend=openvino",)),
        ("npu", ("backend=om", "model.path=om/centerface_bs{batch}_aipp.om")),
    ):
        done = command(*common, *backend, f"output_dir={name}")
        assert done.returncode == 0, done.stderr
    cpu, npu = results(tmp_path / "cpu"), results(tmp_path / "npu")
    assert npu["pictures"] == {"total": 610, "done": 610, "failed": 0}
    assert sum(device["pictures"] for device in npu["devices"]) == 610
    for protocol, ap in cpu["ap"].items():
        for difficulty, value in ap.items():
            assert npu["ap"][protocol][difficulty] == pytest.approx(value, abs=1e-4)
    chips = [json.loads(line)["chip"] for line in ascend_host.read_text().splitlines()]
    assert sorted(chips) == [0, 1]

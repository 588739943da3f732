"""The whole Ascend path with a strict double of the chips: ONNX, ATC, two NPUs, Ray, AP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.ascend import GENERATIONS, install_atc, install_double, install_npu_smi

SIZE = ("model.height=256", "model.width=256")
# The last batch of 16 is mostly padding.
COMMON = ("model.batch=16", "dataset.limit=34", *SIZE)


@pytest.fixture
def command(warm_command):
    """What has neither chips nor their tools is not about how a command starts."""
    return warm_command


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


@pytest.fixture(scope="module")
def on_cpu(commands, tmp_path_factory) -> dict:
    """The results of the same pictures on this host's cores."""
    folder = tmp_path_factory.mktemp("cpu")
    done = commands[0].run(("backend=openvino", *COMMON, "output_dir=cpu"), folder, 300)
    assert done.returncode == 0, done.stderr
    return results(folder / "cpu")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def assert_same_ap(here: dict, there: dict) -> None:
    for protocol, ap in there["ap"].items():
        assert here["ap"][protocol] == pytest.approx(ap, abs=1e-4)


def test_from_onnx_to_ap_on_two_chips(on_cpu, command, tmp_path, ascend_host):
    convert = ("job=convert", "convert.output=om", "convert.batches=[16]", *SIZE)
    done = command("-m", *convert, "convert.aipp=false,true", "output_dir=converted")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made in ") == 2
    again = command(*convert, "convert.aipp=true")
    assert "up to date" in again.stdout

    for name, om in (
        ("f32", "model.path=om/centerface_bs{batch}.om"),
        ("aipp", "model.path=om/centerface_bs{batch}_aipp.om"),
    ):
        ascend_host.unlink(missing_ok=True)
        # backend=auto: there are NPUs and ais_bench.
        npu = command(om, "devices=2", *COMMON, f"output_dir={name}")
        assert npu.returncode == 0, npu.stderr

        here = results(tmp_path / name)
        assert here["backend"] == "om"
        assert here["pictures"] == on_cpu["pictures"]
        assert here["pictures"]["total"] % 16 == 2
        assert_same_ap(here, on_cpu)
        for device in here["devices"]:
            assert device["pictures"] > 0
            assert 0 < device["device_ms"]["min"] <= device["batch_ms"]["max"]
        opened = [json.loads(line) for line in ascend_host.read_text().splitlines()]
        # Each actor sees one chip, whose index is 0 there.
        assert sorted(entry["chip"] for entry in opened) == [0, 1]
        assert {entry["index"] for entry in opened} == {0}
        assert len({entry["pid"] for entry in opened}) == 2


@pytest.mark.parametrize("ascend_host", ["later"], indirect=True)
def test_chips_that_are_not_there_and_one_that_is_chosen(command, tmp_path, ascend_host):
    made = command("job=convert", "convert.output=om", "convert.batches=[16]", *SIZE)
    assert made.returncode == 0, made.stderr
    model = ("model.path=om/centerface_bs16.om", *SIZE)
    wrong = command(*model, "model.batch=4")
    assert wrong.returncode == 2, wrong.stderr
    assert "convert.batches=[4]" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1

    many = command(*model, "model.batch=16", "devices=3")
    assert many.returncode == 2
    assert "Ray sees 2 NPU" in many.stderr

    listed = command(*model, "model.batch=16", "devices=[1]", "dataset.limit=3", "output_dir=one")
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
def test_real_pictures_on_two_chips(command, tmp_path, ascend_host, shared, monkeypatch):
    """130 = 8 * 16 + 2: the last batch is mostly padding. At a small input, to be quick."""
    data = shared / "data" / "wider_val_mini"
    common = (
        "dataset=wider_val", f"dataset.root={data / 'WIDER_val'}",
        f"dataset.ground_truth={data / 'ground_truth'}", "dataset.limit=130", "model.batch=16",
        "devices=2", *SIZE,
    )  # fmt: skip
    done = command(
        "job=convert", "convert.output=om", "convert.batches=[16]", "convert.aipp=true", *SIZE
    )
    assert done.returncode == 0, done.stderr
    om = ("backend=om", "model.path=om/centerface_bs{batch}_aipp.om")
    done = command(*common, *om, "output_dir=npu")
    assert done.returncode == 0, done.stderr
    npu = results(tmp_path / "npu")
    assert npu["pictures"] == {"total": 130, "done": 130, "failed": 0}
    assert sum(device["pictures"] for device in npu["devices"]) == 130
    chips = [json.loads(line)["chip"] for line in ascend_host.read_text().splitlines()]
    assert sorted(chips) == [0, 1]
    monkeypatch.undo()
    done = command(*common, "backend=openvino", "output_dir=cpu")
    assert done.returncode == 0, done.stderr
    assert_same_ap(npu, results(tmp_path / "cpu"))

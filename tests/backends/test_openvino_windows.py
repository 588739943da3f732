"""The network in windows gives the whole network's numbers, wherever the picture is."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cfdist.backends import openvino as backend_module
from cfdist.backends import windows
from cfdist.backends.base import DeviceSettings
from cfdist.backends.openvino import OpenVINOBackend, WholeNetworkSlot
from cfdist.backends.openvino_windows import WindowRunner, WindowsSlot
from cfdist.backends.windows import Placement
from cfdist.decode import HeadMaps

HEADS = ("hm", "wh", "offset", "landmarks")
SIDES = (256, 320)

# Where the picture is: rows, columns.
PLACES = {
    "all of it": (np.s_[:], np.s_[:]),
    "a band": (np.s_[80:170], np.s_[:]),
    "a high band": (np.s_[:90], np.s_[:]),
    "a low band": (np.s_[150:], np.s_[:]),
    "upright": (np.s_[:], np.s_[100:220]),
    "upright at the side": (np.s_[:], np.s_[:120]),
    "inside": (np.s_[60:200], np.s_[90:200]),
    "one pixel": (np.s_[255:], np.s_[319:]),
    "nothing": (np.s_[:0], np.s_[:0]),
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Several windows, though the input is small."""
    monkeypatch.setattr(windows, "WINDOW_PIXELS", 48 * 320)


def picture_at(place: str, seed: int = 0) -> np.ndarray:
    rows, columns = PLACES[place]
    picture = np.zeros((*SIDES, 3), np.uint8)
    noise = np.random.default_rng(seed).integers(0, 256, picture.shape, np.uint8)
    picture[rows, columns] = noise[rows, columns]
    return picture


def make(spec, threads: int = 2, slots: int = 1, **changes) -> OpenVINOBackend:
    model = spec(height=SIDES[0], width=SIDES[1], **changes)
    return OpenVINOBackend(model, DeviceSettings(threads, slots, 0, {"precision": "f32"}))


def slots_of(backend: OpenVINOBackend) -> list:
    slots = [backend._free.get() for _ in range(backend.slots)]
    for slot in slots:
        backend._free.put(slot)
    return slots


@pytest.fixture(scope="module")
def whole(spec):
    """The network in one piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module, "split_network", lambda *_: None)
        backend = make(spec)
    assert isinstance(slots_of(backend)[0], WholeNetworkSlot)
    return backend


@pytest.fixture
def in_windows(spec):
    backend = make(spec)
    assert isinstance(slots_of(backend)[0], WindowsSlot)
    return backend


def assert_same(some: HeadMaps, others: HeadMaps) -> None:
    for head in HEADS:
        # On the processors tried it is the same to the last bit; kernels may be chosen by shape.
        np.testing.assert_allclose(getattr(some, head), getattr(others, head), rtol=0, atol=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_numbers_are_those_of_the_whole_network(whole, in_windows, place):
    pictures = picture_at(place)[None]
    assert_same(in_windows.infer(pictures), whole.infer(pictures))


def test_nothing_is_left_from_the_pictures_before(whole, in_windows):
    places = list(PLACES)
    for place in (*places, *reversed(places)):
        pictures = picture_at(place, seed=len(place))[None]
        assert_same(in_windows.infer(pictures), whole.infer(pictures))


@pytest.mark.parametrize(("threads", "batch"), [(1, 5), (2, 5), (4, 3), (8, 2)])
def test_a_batch_is_computed_in_as_many_pictures_as_there_are_threads(spec, whole, threads, batch):
    backend = make(spec, threads=threads, batch=batch)
    pictures = np.stack([picture_at(place) for place in list(PLACES)[:batch]])
    assert_same(
        backend.infer(pictures),
        HeadMaps(
            *(np.concatenate(each) for each in zip(*_one_by_one(whole, pictures), strict=True))
        ),
    )
    one = backend.infer(pictures[:1])
    np.testing.assert_allclose(one.hm, whole.infer(pictures[:1]).hm, rtol=0, atol=1e-3)


def _one_by_one(backend, pictures):
    for picture in pictures:
        maps = backend.infer(picture[None])
        yield [getattr(maps, head) for head in HEADS]


def test_normalisation_happens_in_every_window(spec):
    changes = {
        "color": "BGR",
        "scale": 1 / 255,
        "mean": (0.40789654, 0.44719302, 0.47026115),
        "std": (0.28863828, 0.27408164, 0.27809835),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module, "split_network", lambda *_: None)
        whole = make(spec, **changes)
    for place in ("a band", "upright"):
        pictures = picture_at(place)[None]
        assert_same(make(spec, **changes).infer(pictures), whole.infer(pictures))


def test_slots_do_not_disturb_each_other(spec, whole):
    backend = make(spec, threads=3, slots=3)
    pictures = [picture_at(place)[None] for place in ("a band", "upright", "all of it")]
    expected = [whole.infer(each) for each in pictures]
    found: list = [None] * 3

    def run(i: int) -> None:
        found[i] = [backend.infer(pictures[i]) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found)
    for results, one in zip(found, expected, strict=True):
        for result in results:
            assert_same(result, one)


def test_black_is_not_computed_again(in_windows, monkeypatch):
    started = []
    start = WindowRunner.start

    def note(self, picture, placement, tensors):
        started.append(placement)
        start(self, picture, placement, tensors)

    monkeypatch.setattr(WindowRunner, "start", note)
    in_windows.infer(picture_at("nothing")[None])
    assert not started
    in_windows.infer(picture_at("all of it")[None])
    everything = len(started)
    in_windows.infer(picture_at("a band")[None])
    assert 0 < len(started) - everything < everything


@pytest.mark.parametrize("overlaps", [False, True])
def test_rows_of_two_windows_are_written_by_one_at_a_time(in_windows, overlaps):
    # OpenVINO may add to what it has written: a second window must not write between.
    network = slots_of(in_windows)[0]._network
    tensors = [room[0] for room in network.room(1)]
    for tensor in tensors:
        tensor.fill(np.nan)
    runner = WindowRunner(network)
    placement = Placement("middle", network.grid.before, overlaps)
    runner.start(picture_at("all of it"), placement, tensors)
    runner._under_way[0][0].wait()
    assert all(np.isnan(tensor).all() == overlaps for tensor in tensors)
    runner.finish()
    for tensor, scale in zip(tensors, network.scales, strict=True):
        rows = slice(placement.first * scale, (placement.first + network.grid.size) * scale)
        assert not np.isnan(tensor[rows]).any()
        tensor[rows] = np.nan
        assert np.isnan(tensor).all()


@pytest.fixture
def small_network(tmp_path):
    """Another network: its local part ends in a residual addition, its heads look at that."""
    random = np.random.default_rng(0)
    shapes = {"stem": (8, 3, 3, 3), "first": (8, 8, 3, 3), "second": (16, 8, 3, 3)}
    shapes |= {"branch": (16, 16, 3, 3), "deep": (16, 16, 41, 1)}
    shapes |= {head: (n, 16, 1, 1) for head, n in zip(HEADS, (1, 2, 2, 10), strict=True)}
    weights = [
        helper.make_tensor(
            f"{name}.weight", TensorProto.FLOAT, shape, random.normal(0, 0.1, shape).ravel()
        )
        for name, shape in shapes.items()
    ]

    def conv(name: str, taken: str, made: str, **attributes) -> onnx.NodeProto:
        return helper.make_node("Conv", [taken, f"{name}.weight"], [made], **attributes)

    nodes = [
        conv("stem", "picture", "a", strides=[2, 2], pads=[1] * 4),
        conv("first", "a", "b", pads=[1] * 4),
        conv("second", "b", "c", strides=[2, 2], pads=[1] * 4),
        conv("branch", "c", "d", pads=[1] * 4),
        helper.make_node("Add", ["c", "d"], ["e"]),
        conv("deep", "e", "f", pads=[20, 0, 20, 0]),
        *(conv(head, "f", head) for head in HEADS),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 3, *SIDES])],
        [
            helper.make_tensor_value_info(head, TensorProto.FLOAT, ["n", "c", "y", "x"])
            for head in HEADS
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "small.onnx"
    onnx.save(model, path)
    return path


def test_another_network_again_and_again(spec, small_network):
    changes = {"path": small_network, "outputs": HEADS, "batch": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module, "split_network", lambda *_: None)
        whole = make(spec, **changes)
    backend = make(spec, threads=2, **changes)
    network = slots_of(backend)[0]._network
    assert list(network.part.cut) == ["e"]
    pictures = picture_at("a band")[None]
    expected = whole.infer(pictures)
    seen = network.part.reach.seeing((80, 170), network.grid.cells[0])
    assert any(each.overlaps for each in network.grid.cover(seen, (0, network.grid.cells[1])))
    for _ in range(50):
        found = backend.infer(pictures)
        for head in HEADS:
            a, b = getattr(found, head), getattr(expected, head)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_after_a_failure_the_slot_can_be_used(whole, in_windows, monkeypatch):
    pictures = picture_at("all of it")[None]
    start = WindowRunner.start
    calls = []

    def fail_at_the_third(self, picture, placement, tensors):
        calls.append(placement)
        if len(calls) == 3:
            raise RuntimeError("no memory for a window")
        start(self, picture, placement, tensors)

    monkeypatch.setattr(WindowRunner, "start", fail_at_the_third)
    with pytest.raises(RuntimeError, match="no memory for a window"):
        in_windows.infer(pictures)
    assert_same(in_windows.infer(pictures), whole.infer(pictures))


def test_real_pictures(spec, shared):
    import cv2

    model = spec(batch=1)
    backend = OpenVINOBackend(model, DeviceSettings(2, 1, 0, {"precision": "f32"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_module, "split_network", lambda *_: None)
        whole = OpenVINOBackend(model, DeviceSettings(2, 1, 0, {"precision": "f32"}))
    for i in range(3):
        picture = cv2.imread(str(shared / "golden" / f"warped_{i}.png"))
        assert picture.shape == (800, 800, 3)
        assert_same(backend.infer(picture[None]), whole.infer(picture[None]))

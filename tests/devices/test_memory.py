"""A batch that the machine cannot hold is refused with what it needs and what there is."""

from __future__ import annotations

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from cfdist.backends.model import BackendModel
from cfdist.devices import memory
from cfdist.distributed.nodes import UNIT, Node
from cfdist.distributed.plan import streams_in_memory
from cfdist.errors import UserError

GPU = {"providers": ["CUDAExecutionProvider"]}
CPU = {"providers": ["CPUExecutionProvider"]}


def test_what_is_needed_grows_with_batch_devices_and_streams(spec):
    def needed(batch: int, count: int = 1, streams: int = 1, options=CPU) -> int:
        model = BackendModel("onnxruntime", spec(batch=batch), options)
        return memory.needed_bytes(model, count, streams)

    assert needed(64) == 2 * needed(32)
    assert needed(32, count=3) == 3 * needed(32)
    assert needed(32, streams=2) > needed(32)
    assert needed(32, options=GPU) < needed(32)  # the activations are on the card
    # 64 pictures of 800x800 were measured to take 14.2 GB.
    assert needed(64) > 14.2e9


def test_openvino_computes_as_many_pictures_at_once_as_a_stream_has_threads(spec):
    def activations(batch: int, threads: int = 1) -> int:
        return memory.activation_bytes(BackendModel("openvino", spec(batch=batch)), threads)

    assert activations(64) == activations(1)
    assert activations(64, threads=8) == 8 * activations(1)
    assert activations(4, threads=8) == 4 * activations(1)
    # 8 pictures of 800x800 were measured to take 1.15 GB.
    assert activations(8, threads=8) > 1.1e9


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("cores", "batch", "free"), [(16, 128, 24e9), (64, 64, 64e9), (2, 1, 2e9)])
def test_streams_chosen_by_memory_are_not_refused(spec, backend, cores, batch, free):
    model = BackendModel(backend, spec(batch=batch), CPU)
    one = memory.stream_bytes(model)
    node = Node("host", cores, memory=int(free))
    streams = streams_in_memory(cores, "cpu", cores * UNIT, one, [node])
    assert streams == max(1, min(cores, int(free) // 2 // one))
    if memory.needed_bytes(model, 1, 1, 1) < free / 2:
        memory.refuse_too_large([model], 1, streams, cores, node.memory)


def test_simulated_devices_only_need_their_buffers(spec):
    model = BackendModel("simulated", spec(batch=32))
    assert memory.needed_bytes(model, 2, 1) == 2 * 3 * 32 * 800 * 800 * 3


def test_too_large_a_batch_is_the_user_s_error(spec, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2_000_000_000)
    small, large = (BackendModel("onnxruntime", spec(batch=batch), CPU) for batch in (4, 64))
    memory.refuse_too_large([small])
    with pytest.raises(UserError, match=r"model.batch=64: 2 devices .* 30.7 GB .* 2.0 GB are free"):
        memory.refuse_too_large([large], count=2)
    with pytest.raises(UserError, match=r"about 30.7 GB"):  # two models beside each other
        memory.refuse_too_large([large, large])
    memory.refuse_too_large([large], free=40_000_000_000)
    with pytest.raises(UserError, match=r"need about 15.3 GB of memory, 9.0 GB are free on east;"):
        memory.refuse_too_large([large], free=9_000_000_000, host="east")
    with pytest.raises(
        UserError, match=r"^backend\.streams=1000, model\.batch=4: 1 device with 1000 "
    ):
        memory.refuse_too_large([small], 1, 1000, free=9_000_000_000)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("Exception from infer_request.cpp:224:\nstd::bad_alloc\n"), "std::bad_alloc"),
        # ONNX Runtime's own class.
        (Fail("BFCArena::AllocateRawInternal Failed to allocate memory"), "BFCArena::Allocate"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "DefaultCPU"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory"),
    ],
)
def test_no_room_for_the_batch_is_the_user_s_error(error, reason):
    with (
        pytest.raises(UserError, match=rf"model\.batch=8: does not fit .* \({reason}.*\); choose"),
        memory.memory_as_user_error(8),
    ):
        raise error


def test_another_error_stays_what_it_is():
    with pytest.raises(ValueError, match="no such thing"), memory.memory_as_user_error(8):
        raise ValueError("no such thing")


def test_pictures_at_their_own_size_need_no_buffers_of_whole_chunks(spec):
    def needed(**changes) -> int:
        model = BackendModel("openvino", spec(height=1024, width=1024, **changes), CPU)
        return memory.needed_bytes(model, 1, 2)

    assert needed(batch=1, size="own") < needed(batch=1)
    assert needed(batch=8, size="own") > needed(batch=1, size="own")


def test_the_largest_picture_is_named_where_it_does_not_fit(spec):
    model = BackendModel("openvino", spec(height=8192, width=8192, batch=1, size="own"), CPU)
    with pytest.raises(UserError, match=r"at once, the largest picture, e/a, of 8192x8192, need"):
        memory.refuse_too_large([model], free=2_000_000_000, picture="e/a")

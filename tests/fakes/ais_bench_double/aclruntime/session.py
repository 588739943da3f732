"""`aclruntime.InferenceSession`: chips, sizes in bytes, device times; no NPU."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections.abc import Callable

import numpy as np

from aclruntime.om import AclError, OmHeader, TensorDesc, describe, read_om

DEVICE_UNAVAILABLE = 507033
NO_CONTEXT = 107002


class session_options:  # noqa: N801, the real extension's name
    """Options of a session, as the real extension has them."""

    def __init__(self) -> None:
        self.loop = 1
        self.log_level = 2
        self.acl_json_path = ""


class BaseTensor:
    """An address and a number of bytes; nothing keeps the memory alive."""

    def __init__(self, buf: int, size: int) -> None:
        self.buf = buf
        self.size = size


class Tensor:
    """An output on the chip."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def shape(self) -> list[int]:
        """Sides."""
        return list(self._array.shape)

    def to_host(self) -> None:
        """Copy to the host: it is there already."""

    def to_device(self, device_id: int) -> None:
        """Copy to the chip: there is none."""

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """A copy, as the real buffer protocol's `np.array(tensor)` makes."""
        return np.array(self._array, dtype=dtype)


class sumary:  # noqa: N801, the real extension's name
    """Pure device times, milliseconds, one entry for each execution."""

    def __init__(self) -> None:
        self.exec_time_list: list = []


class InferenceSession:
    """An OM loaded on one chip.

    Like ACL's own default context, it belongs to the thread that opened it.
    """

    def __init__(self, model_path: str, device_id: int, options: session_options) -> None:
        if not isinstance(model_path, str) or not isinstance(device_id, int):
            raise TypeError("__init__(): incompatible constructor arguments (str, int, options)")
        chip = open_chip(device_id)
        self._header, graph = read_om(model_path)
        self._run: Callable | None = _engine(graph)
        self._options = options
        self._batch: int | None = None  # of an OM with several, once one is chosen
        self._size: tuple[int, int] | None = None  # the same, of input sizes
        self._sumary = sumary()
        self._thread = threading.get_ident()
        _log({"pid": os.getpid(), "index": device_id, "chip": chip, "model": model_path})

    def options(self) -> session_options:
        """The live options."""
        return self._options

    def get_inputs(self) -> list[TensorDesc]:
        """Descriptions of the inputs."""
        largest = max(self._header.sizes, key=lambda size: size[0] * size[1], default=())
        if largest:
            return describe(self._header.inputs, self._size or tuple(largest))
        batch = self._batch or max(self._header.batches, default=0)
        return describe(self._header.inputs, (batch,))

    def set_staticbatch(self) -> None:
        """Run at the one batch that the OM has."""
        self._batch = None

    def set_dynamic_batchsize(self, batch: int) -> None:
        """Run an OM with several batches at one of them."""
        if batch not in self._header.batches:
            raise AclError(
                500002, f"set dynamic batch {batch} failed, the model has {self._header.batches}"
            )
        self._batch = batch

    def set_dynamic_hw(self, height: int, width: int) -> None:
        """Run an OM with several input sizes at one of them; the extension says (w, h)."""
        if [height, width] not in self._header.sizes:
            raise AclError(
                500002, f"set dynamic hw {height},{width} failed, the model has other sizes"
            )
        self._size = (height, width)

    def get_outputs(self) -> list[TensorDesc]:
        """Descriptions of the outputs."""
        return describe(self._header.outputs)

    def run(self, output_names: list[str], feeds: list[BaseTensor]) -> list[Tensor]:
        """Execute `loop` times; sizes are checked in bytes and nothing else is."""
        if self._run is None:
            raise AclError(145003, "model id invalid: the session is released")
        if threading.get_ident() != self._thread:
            raise AclError(NO_CONTEXT, "context is not set in this thread")
        if self._header.batches and self._batch is None:
            raise AclError(545001, "dynamic batch is not set")
        if self._header.sizes and self._size is None:
            raise AclError(545001, "dynamic hw is not set")
        needed = self.get_inputs()
        if len(feeds) != len(needed):
            raise AclError(1, f"intensors size:{len(feeds)} need size:{len(needed)} not match")
        if feeds[0].size != needed[0].realsize:
            raise AclError(
                1,
                f"Check i:0 name:{needed[0].name} in size:{feeds[0].size} "
                f"needsize:{needed[0].realsize} not match",
            )
        content = ctypes.string_at(feeds[0].buf, feeds[0].size)
        network_input = _network_input(content, self._header, self._batch, self._size)
        for _ in range(self._options.loop):
            arrays = self._timed(network_input)
        by_name = dict(zip([row[0] for row in self._header.outputs], arrays, strict=True))
        return [Tensor(by_name[name]) for name in output_names]

    def _timed(self, network_input: np.ndarray) -> list[np.ndarray]:
        start = time.perf_counter() * 1000
        arrays = self._run(network_input)
        end = time.perf_counter() * 1000
        pairs = os.environ.get("AIS_BENCH_DOUBLE_TIMES") == "pairs"
        self._sumary.exec_time_list.append((start, end) if pairs else end - start)
        flat = os.environ.get("AIS_BENCH_DOUBLE_FLAT") == "1"
        kinds = [row[1] for row in self._header.outputs]
        arrays = [
            np.asarray(array.reshape(-1) if flat else array, kind)
            for array, kind in zip(arrays, kinds, strict=True)
        ]
        return self._in_largest_memory(arrays) if self._header.sizes else arrays

    def _in_largest_memory(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs at the start of memory that holds those of the largest input size."""
        whole = []
        for array, (_, kind, _, shape) in zip(arrays, self._header.outputs, strict=True):
            whole.append(np.full(np.prod(shape), np.nan, kind))
            whole[-1][: array.size] = array.reshape(-1)
        return whole

    def sumary(self) -> sumary:
        """The live times."""
        return self._sumary

    def reset_sumaryinfo(self) -> None:
        """Forget all times, in place."""
        self._sumary.exec_time_list.clear()

    def release(self) -> None:
        """Unload the model."""
        self._run = None


def open_chip(index: int) -> int:
    """The chip behind an index of this process.

    Raises:
        AclError: 507033, the device cannot be opened.
    """
    count = int(os.environ.get("AIS_BENCH_DOUBLE_DEVICES", "2"))
    setting = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    visible = range(count) if setting is None else [int(v) for v in setting.split(",") if v]
    if setting is not None and not 0 <= index < len(visible):
        raise AclError(
            DEVICE_UNAVAILABLE, f"invalid device={index}, input visible devices:{setting}"
        )
    if not 0 <= index < len(visible) or not 0 <= visible[index] < count:
        raise AclError(DEVICE_UNAVAILABLE, f"device {index} could not be opened, {count} present")
    return visible[index]


def _network_input(
    content: bytes, header: OmHeader, batch: int | None, size: tuple[int, int] | None
) -> np.ndarray:
    """The bytes, taken for what the OM expects, as the float32 NCHW of its ONNX."""
    _, kind, _, shape = header.inputs[0]
    chosen = iter(size or (batch,))
    array = np.frombuffer(content, kind).reshape(
        [next(chosen) if side < 0 else side for side in shape]
    )
    if header.aipp is None:
        return array
    if header.aipp["swap"]:
        array = array[..., ::-1]
    low = np.array(header.aipp["min"], np.float32)
    factor = np.array(header.aipp["var_reci"], np.float32)
    return np.ascontiguousarray(((array - low) * factor).transpose(0, 3, 1, 2))


def _engine(graph: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    threads = int(os.environ.get("AIS_BENCH_DOUBLE_THREADS", "1"))
    if os.environ.get("AIS_BENCH_DOUBLE_ENGINE", "onnxruntime") == "openvino":
        return _openvino(graph, threads)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})


def _openvino(graph: bytes, threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    import openvino as ov

    core = ov.Core()
    request = core.compile_model(
        core.read_model(graph),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
    ).create_infer_request()

    def run(array: np.ndarray) -> list[np.ndarray]:
        request.infer([array])
        count = len(request.output_tensors)
        return [np.array(request.get_output_tensor(i).data) for i in range(count)]

    return run


def _log(entry: dict) -> None:
    path = os.environ.get("AIS_BENCH_DOUBLE_LOG")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

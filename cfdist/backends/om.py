"""OM files on Ascend NPUs, through the `InferSession` of the packages ais_bench and aclruntime.

Two generations of `InferSession` are in use (the wheels of CANN 6 and later ones); they differ in
the names of a few members, so what is there decides, never a version. Inputs are handed over as a
bare address and checked by their number of bytes only: all that could go wrong unnoticed is
checked here.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import Backend, Capabilities, DeviceSettings, listed
from cfdist.decode import PEAK_OUTPUTS, PEAK_VALUES, STRIDE, HeadMaps, Peaks, graph_peaks
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract

OM_MAGIC = b"IMOD"  # the first bytes of every OM file

_T = TypeVar("_T")


class OmBackend(Backend):
    """An OM with a static batch on one NPU.

    The OM's own description decides the input: float32 NCHW, normalised as `ModelSpec` says, or
    uint8 NHWC (AIPP: the chip normalises; the letterboxed BGR picture goes in as it is).

    Attributes:
        contract: The OM's input, `batch` included.
        streams: 1; a session is for one caller at a time.
    """

    # While one batch is computed, the next is copied in and the last one out.
    capabilities: ClassVar[Capabilities] = Capabilities(group=3, has_fixed_batch=True)

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        inspect_om(spec.path)
        session_type = _session_type()
        # An ACL context belongs to the thread that made it; callers need not care.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="npu")
        self._session: Any = None
        try:
            self._session = self._on_thread(_open, session_type, spec.path, settings.index)
            inputs, outputs = self._on_thread(_describe, self._session)
            self.contract = input_contract(inputs, spec)
            self._peak_order = peak_order(outputs, spec)
            self._order = self._peak_order or output_order(outputs, spec)
        except BaseException:
            self.close()
            raise
        self._padded = np.zeros(self.contract.shape(spec.batch), self.contract.dtype)

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`; nothing is loaded, so that a host without NPU can check."""
        inspect_om(spec.path)
        _check_packages()

    @classmethod
    def device_kind(cls, options: Mapping[str, Any]) -> str:
        """See `Backend.device_kind`."""
        return "npu"

    def infer(self, inputs: NDArray[Any]) -> HeadMaps | Peaks:
        """See `Backend.infer`; inputs are of `contract.shape(n)`, n up to the OM's batch.

        Raises:
            ValueError: another shape or dtype, which the runtime would not notice.
            RuntimeError: the chip failed; the text holds an ACL code.
        """
        feed = self._feed(inputs, self._padded)
        outputs = self._on_thread(self._session.infer, [feed], "static")
        return self._result(outputs, len(inputs))

    def infer_many(self, batches: Sequence[NDArray[Any]]) -> list[HeadMaps | Peaks]:
        """`infer` for several batches, copies and execution overlapping where the runtime can.

        Args:
            batches: Arrays as `infer` takes them. All their outputs are in memory at once.

        Returns:
            Head maps, or peaks, of each batch, in order.
        """
        pipeline = getattr(self._session, "infer_pipeline", None)
        if pipeline is None or len(batches) < 2:
            return super().infer_many(batches)
        # Each in a buffer of its own: all are in use at once.
        feeds = [[self._feed(inputs, None)] for inputs in batches]
        results = self._on_thread(pipeline, feeds, "static")
        return [
            self._result(outputs, len(inputs))
            for outputs, inputs in zip(results, batches, strict=True)
        ]

    def device_times_ms(self) -> list[float]:
        """Pure execution times on the chip since the last call, milliseconds, copies excluded.

        One entry an execution (several a batch where a loop count is set).
        """
        return self._on_thread(_take_times, self._session)

    def close(self) -> None:
        """Unload the model and give the chip back; a second call does nothing."""
        session, self._session = self._session, None
        if session is not None:
            # Where both are there, `finalize` is static and ends ACL for the whole process.
            release = getattr(session, "free_resource", None) or session.finalize
            self._on_thread(release)
        self._thread.shutdown()

    def _on_thread(self, function: Callable[..., _T], *args: Any) -> _T:
        return self._thread.submit(function, *args).result()

    def _feed(self, inputs: NDArray[Any], buffer: NDArray[Any] | None) -> NDArray[Any]:
        """The whole batch, C-contiguous: `inputs` itself or a padded copy in `buffer`."""
        whole = self.contract.shape(self.spec.batch)
        if inputs.dtype != self.contract.dtype or inputs.shape[1:] != whole[1:]:
            raise ValueError(
                f"input of {inputs.dtype} {inputs.shape}, "
                f"the OM takes {self.contract.dtype} {whole}"
            )
        if not 1 <= len(inputs) <= whole[0]:
            raise ValueError(f"{len(inputs)} pictures, the OM takes 1 to {whole[0]}")
        if len(inputs) == whole[0] and inputs.flags.c_contiguous:
            return inputs
        padded = np.zeros(whole, self.contract.dtype) if buffer is None else buffer
        padded[: len(inputs)] = inputs
        padded[len(inputs) :] = 0
        return padded

    def _result(self, outputs: Sequence[NDArray[Any]], pictures: int) -> HeadMaps | Peaks:
        if self._peak_order:
            return self._peaks(outputs, pictures)
        return self._heads(outputs, pictures)

    def _peaks(self, outputs: Sequence[NDArray[Any]], pictures: int) -> Peaks:
        """Outputs of an OM that picks its own peaks, without the padding."""
        shapes = _peak_shapes(self.spec)
        score, cell, values = (
            np.asarray(outputs[index]).reshape(shape)[:pictures]
            for index, shape in zip(self._order, shapes, strict=True)
        )
        return graph_peaks(score.astype(np.float32), cell, values.astype(np.float32))

    def _heads(self, outputs: Sequence[NDArray[Any]], pictures: int) -> HeadMaps:
        """Output arrays of a whole batch, flat or shaped, to head maps without the padding."""
        cells = (self.contract.height // STRIDE, self.contract.width // STRIDE)
        maps = []
        for index, channels in zip(self._order, HeadMaps.CHANNELS, strict=True):
            shape = (self.spec.batch, channels, *cells)
            array = np.asarray(outputs[index])
            if array.size != prod(shape) or array.dtype.kind != "f":
                raise RuntimeError(
                    f"{self.spec.path}: output {index} came as {array.dtype}{array.shape}, "
                    f"expected floats of {shape}"
                )
            kept = array.reshape(shape)[:pictures]
            # A slice would keep the padding in memory; a view of foreign memory may be overwritten.
            own = array.flags.owndata and pictures == self.spec.batch
            maps.append(kept.astype(np.float32, copy=not own))
        return HeadMaps(*maps)


def inspect_om(path: Path | str) -> None:
    """Check, without a chip, that a file can be an OM.

    Raises:
        UserError: no such file, or one that does not begin as an OM does.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(OM_MAGIC))
    except OSError as error:
        raise UserError(
            f"model {path}: cannot be read ({error.strerror}); give an .om, made with job=convert"
        ) from None
    if start != OM_MAGIC:
        raise UserError(
            f"model {path}: not an OM file (it begins with {start!r}, an OM with {OM_MAGIC!r}); "
            "make one with job=convert, or choose backend=auto for an ONNX"
        )


def input_contract(inputs: Sequence[Any], spec: ModelSpec) -> InputContract:
    """What an OM takes, from its own description.

    Args:
        inputs: What `get_inputs()` gave: objects with name, datatype, shape, realsize (bytes).
        spec: The model's conventions, for what no OM states.

    Returns:
        float32 NCHW with `spec`'s normalisation, or uint8 NHWC BGR; with the OM's batch.

    Raises:
        UserError: an OM of another batch or size, with a dynamic shape, or not for pictures.
    """
    where = f"model {spec.path}"
    if len(inputs) != 1:
        names = ", ".join(str(tensor.name) for tensor in inputs) or "none"
        raise UserError(
            f"{where}: has {len(inputs)} inputs ({names}), expected one; dynamic batches and "
            "dynamic AIPP add inputs: build a static OM with job=convert"
        )
    dtype, shape = _dtype_name(inputs[0]), tuple(int(side) for side in inputs[0].shape)
    match (dtype, shape):
        case ("float32", (batch, 3, height, width)):
            contract = replace(spec.float_contract(), batch=batch, height=height, width=width)
        case ("uint8", (batch, height, width, 3)):
            contract = InputContract(height, width, batch)
        case _:
            raise UserError(
                f"{where}: its input is {dtype}{shape}, expected float32 (batch, 3, height, width) "
                "or, with AIPP, uint8 (batch, height, width, 3); build it with job=convert"
            )
    _check_input_size(contract, spec)
    needed = int(inputs[0].realsize)
    if needed != prod(shape) * np.dtype(dtype).itemsize:
        raise UserError(
            f"{where}: its input {dtype}{shape} wants {needed} bytes, so it is not what it says; "
            "build it with job=convert"
        )
    return contract


def output_order(outputs: Sequence[Any], spec: ModelSpec) -> tuple[int, ...]:
    """Where heat map, size, offset and landmarks are among an OM's outputs.

    An OM's outputs keep the ONNX's order and are named `<node>:<index>:<name in the graph>`; size
    and offset have the same shape, so only the name's last part or the order tells them apart.
    `spec.outputs` are looked up by name; where it is `None` or the OM names no output of the
    graph, the order counts.

    Raises:
        UserError: outputs that are missing, or not of CenterFace's shapes.
    """
    where = f"model {spec.path}"
    names = [str(getattr(tensor, "name", "") or "") for tensor in outputs]
    by_name = _order_by_name(names, spec.outputs or ())
    order = tuple(by_name.values()) if by_name else tuple(range(len(outputs)))
    missing = [name for name in spec.outputs or () if by_name and name not in by_name]
    if missing:
        raise UserError(
            f"{where}: no output {listed(missing)} (it has {listed(names)}); set model.outputs "
            "to the names in its graph, or to null to take them in the OM's order"
        )
    if len(order) != len(HeadMaps.CHANNELS):
        raise UserError(
            f"{where}: its outputs are {listed(names)}, expected four: heat map, size, offset, "
            "landmarks"
        )
    cells = (spec.height // STRIDE, spec.width // STRIDE)
    heads = zip(order, HeadMaps.CHANNELS, HeadMaps._fields, strict=True)
    for index, channels, head in heads:
        shape = tuple(int(side) for side in outputs[index].shape)
        expected = (spec.batch, channels, *cells)
        if prod(shape) != prod(expected) or (len(shape) == 4 and shape[1] != channels):
            raise UserError(
                f"{where}: output {index} ({names[index]!r}) is {shape}, expected {expected} for "
                f"{head}; give an OM of CenterFace, or its names in model.outputs"
            )
    return order


def peak_order(outputs: Sequence[Any], spec: ModelSpec) -> tuple[int, ...]:
    """Where score, cell and values are among the outputs of an OM that picks its own peaks.

    Returns:
        Three indices; empty where the OM gives something else.

    Raises:
        UserError: peaks by name, but of another `model.top_k`.
    """
    names = [str(getattr(tensor, "name", "") or "") for tensor in outputs]
    order = tuple(_order_by_name(names, PEAK_OUTPUTS).values())
    if not len(outputs) == len(order) == len(PEAK_OUTPUTS):
        return ()
    for index, shape in zip(order, _peak_shapes(spec), strict=True):
        there = tuple(int(side) for side in outputs[index].shape)
        if prod(there) != prod(shape):
            raise UserError(
                f"model {spec.path}: output {names[index]!r} is {there}, expected {shape}; set "
                "model.top_k to the export's"
            )
    return order


def _peak_shapes(spec: ModelSpec) -> tuple[tuple[int, ...], ...]:
    rows = (spec.batch, spec.top_k)
    return rows, rows, (*rows, PEAK_VALUES)


def _check_input_size(contract: InputContract, spec: ModelSpec) -> None:
    """Hold the OM's batch, height and width to the run's."""
    where = f"model {spec.path}"
    batch = contract.batch or 0
    if min(contract.shape(batch)) < 1:
        raise UserError(
            f"{where}: its input {contract.shape(batch)} is dynamic; build one OM a batch "
            f"size with job=convert convert.batches=[{spec.batch}]"
        )
    if contract.batch != spec.batch:
        raise UserError(
            f"{where}: made for batches of {contract.batch}, model.batch is {spec.batch}; build "
            f"its OM with job=convert convert.batches=[{spec.batch}], or run with "
            f"model.batch={contract.batch}"
        )
    if (contract.height, contract.width) != (spec.height, spec.width):
        raise UserError(
            f"{where}: made for model.height={contract.height} model.width={contract.width}, the "
            f"run has {spec.height} and {spec.width}; set them to the OM's or build another"
        )


def _order_by_name(names: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    """The index of each wanted graph output that is there."""
    ends = [f":{name}" for name in names]
    found = {}
    for graph_name in wanted:
        for i, end in reversed(list(enumerate(ends))):
            if end.endswith(f":{graph_name}"):
                found[graph_name] = i
    return found


def _dtype_name(tensor: Any) -> str:
    """The name of an `aclruntime.dtype` member: "uint8", "float32"."""
    kind = tensor.datatype
    return str(getattr(kind, "name", kind)).rsplit(".", 1)[-1]


def _check_packages() -> None:
    """Look for `InferSession` without importing it.

    Raises:
        UserError: it is not installed, or another package of the name is.
    """
    missing = []
    for module in ("aclruntime", "ais_bench.infer.interface"):
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:
            found = False
        if not found:
            missing.append(module)
    if missing:
        raise UserError(_install_hint(f"{' and '.join(missing)} not found"))


def _session_type() -> type:
    try:
        from ais_bench.infer.interface import InferSession
    except ImportError as error:
        raise UserError(_install_hint(f"{error}; is set_env.sh sourced?")) from None
    found: type = InferSession
    return found


def _install_hint(reason: str) -> str:
    return (
        f"backend=om: no usable ais_bench ({reason}); install the wheels aclruntime and ais_bench "
        "from that project's own pages (the package ais-bench-benchmark is another tool, which "
        "also takes the name ais_bench: uninstall it)"
    )


def _open(session_type: type, path: Path, index: int) -> Any:
    try:
        return session_type(int(index), str(path))
    except RuntimeError as error:
        visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
        raise RuntimeError(
            f"NPU {index} (ASCEND_RT_VISIBLE_DEVICES={visible or 'not set'}): "
            f"{path} could not be loaded: {error}"
        ) from error


def _describe(session: Any) -> tuple[list[Any], list[Any]]:
    return list(session.get_inputs()), list(session.get_outputs())


def _take_times(session: Any) -> list[float]:
    """Read and forget a session's execution times, milliseconds."""
    summary = getattr(session, "summary", None) or session.sumary
    reset = getattr(session, "reset_summaryinfo", None) or session.reset_sumaryinfo
    entries = list(summary().exec_time_list)
    reset()
    # The newest generation lists (start, end), the others durations.
    return [
        float(entry[1] - entry[0]) if isinstance(entry, (tuple, list)) else float(entry)
        for entry in entries
    ]

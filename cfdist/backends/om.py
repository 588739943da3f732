"""OM files on Ascend NPUs, through the `InferSession` of the packages ais_bench and aclruntime.

Two generations of `InferSession` are in use (the wheels of CANN 6 and later ones); they differ in
the names of a few members, so what is there decides, never a version. Inputs are handed over as a
bare address and checked by their number of bytes only: all that could go wrong unnoticed is
checked here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from cfdist.ascend.atc import OM_MAGIC, made_for_sizes, size_text
from cfdist.backends import BACKENDS
from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.backends.outputs import as_result, output_order, output_shapes
from cfdist.decode import PEAK_OUTPUTS, STRIDE, HeadMaps, Peaks
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.model.formats import format_of
from cfdist.preprocess import InputContract

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Tensor:
    """The description of an input or output, with the members of ais_bench's own."""

    name: str
    datatype: Any
    shape: tuple[int, ...]
    realsize: int


class OmBackend(Backend):
    """An OM on one NPU: static, or with several batches or input sizes that it takes at run time.

    The OM's own description decides the input: float32 NCHW, normalised as `ModelSpec` says, or
    uint8 NHWC (AIPP: the chip normalises; the letterboxed BGR picture goes in as it is). A session
    is for one caller at a time: there is one stream.
    """

    # While one batch is computed, the next is copied in and the last one out.
    capabilities: ClassVar[Capabilities] = Capabilities(
        group=3, has_fixed_batch=True, takes_any_size=True
    )

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        inspect_om(spec.path)
        self.runs_on = f"NPU {physical_chip(settings.index)}"
        # An ACL context belongs to the thread that made it; callers need not care.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="npu")
        self._session: Any = None
        try:
            self._session = self._on_thread(_open, spec.path, settings.index)
            inputs = self._on_thread(self._session.get_inputs)
            self._has_batches, self._has_sizes = has_dynamic_batch(inputs), has_sizes(inputs)
            outputs = self._on_thread(self._session.get_outputs)
            if self._has_batches:
                self._on_thread(_choose_batch, self._session, spec)
                inputs = at_batch(self._on_thread(self._session.get_inputs), spec.batch)
                outputs = at_batch(outputs, spec.batch)
            elif self._has_sizes:
                if not self.takes_size(spec.height, spec.width):
                    raise _of_other_sizes(spec, spec.height, spec.width)
                inputs = at_size(inputs, spec.height, spec.width)
                outputs = at_size(outputs, spec.height // STRIDE, spec.width // STRIDE)
            elif spec.size == "own":
                raise _of_one_size(spec)
            self.contract = input_contract(inputs, spec)
            self._order = described_order(outputs, spec)
        except BaseException:
            self.close()
            raise

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`; nothing is loaded, so that a host without NPU can check."""
        inspect_om(spec.path)
        _check_packages()
        sizes = made_for_sizes(spec.path, spec.sha256)
        if spec.size == "own" and sizes == ():
            raise _of_one_size(spec)
        if spec.size == "letterbox" and sizes and (spec.height, spec.width) not in sizes:
            raise _of_other_sizes(spec, spec.height, spec.width, sizes)

    @classmethod
    def known_sizes(cls, spec: ModelSpec) -> frozenset[tuple[int, int]] | None:
        """See `Backend.known_sizes`; the record that job=convert leaves beside an OM tells them."""
        sizes = made_for_sizes(spec.path, spec.sha256)
        return None if sizes is None else frozenset(sizes)

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
        return self.infer_many([inputs])[0]

    def infer_many(self, batches: Sequence[NDArray[Any]]) -> list[HeadMaps | Peaks]:
        """See `Backend.infer_many`; the runtime of CANN 6 overlaps nothing."""
        feeds = [[self._feed(inputs)] for inputs in batches]
        mode = "dymbatch" if self._has_batches else "static"
        pipeline = getattr(self._session, "infer_pipeline", None)
        if self._has_sizes:
            results = [self._on_thread(self._run_sized, feed) for feed in feeds]
        elif pipeline is not None and len(feeds) > 1:
            results = self._on_thread(pipeline, feeds, mode)
        else:
            results = [self._on_thread(self._session.infer, feed, mode) for feed in feeds]
        return [
            self._result(outputs, inputs) for outputs, inputs in zip(results, batches, strict=True)
        ]

    def takes_size(self, height: int, width: int) -> bool:
        """See `Backend.takes_size`; the runtime is asked, and answers without computing."""
        return self._on_thread(self._sets_size, height, width)

    @property
    def cli_options(self) -> list[str]:
        """What ais_bench's command line has to be told for this OM.

        Raises:
            UserError: it takes its size at run time.
        """
        if self._has_sizes:
            raise UserError(
                f"model {self.spec.path}: has several input sizes; infer.cli=true takes an OM of "
                "one, so leave it out, or build one with job=convert convert.sizes=null"
            )
        return ["--dymBatch", str(self.spec.batch)] if self._has_batches else []

    def device_times_ms(self) -> list[float]:
        """See `Backend.device_times_ms`; copies to and from the chip are excluded."""
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

    def _run_sized(self, feed: list[NDArray[Any]]) -> Any:
        """Run at the size that a feed has; `infer` of ais_bench knows sizes in NCHW only."""
        height, width = self._size_of(feed[0])
        if not self._sets_size(height, width):
            raise _of_other_sizes(self.spec, height, width)
        return self._session.run(feed, True)

    def _sets_size(self, height: int, width: int) -> bool:
        """Choose the session's size, on its thread; returns whether the OM has it."""
        try:
            self._session.set_dynamic_hw(height, width)
        except RuntimeError:
            return False
        return True

    def _size_of(self, inputs: NDArray[Any]) -> tuple[int, int]:
        """Height and width of an input tensor, which at own size are not the contract's."""
        height, width = inputs.shape[1:3] if self.contract.layout == "NHWC" else inputs.shape[2:4]
        return height, width

    def _feed(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """The whole batch, C-contiguous: `inputs` itself or a padded copy."""
        contract = self.contract
        if self.spec.size == "own" and inputs.ndim == 4:
            height, width = self._size_of(inputs)
            contract = replace(contract, height=height, width=width)
        whole = contract.shape(self.spec.batch)
        is_wrong = inputs.dtype != self.contract.dtype or inputs.shape[1:] != whole[1:]
        if is_wrong or not 1 <= len(inputs) <= whole[0]:
            raise ValueError(
                f"input of {inputs.dtype} {inputs.shape}, the OM takes {self.contract.dtype} "
                f"{whole}, or fewer pictures"
            )
        if len(inputs) == whole[0] and inputs.flags.c_contiguous:
            return inputs
        padded = np.zeros(whole, self.contract.dtype)
        padded[: len(inputs)] = inputs
        return padded

    def _result(self, outputs: Sequence[NDArray[Any]], inputs: NDArray[Any]) -> HeadMaps | Peaks:
        """Output arrays of a whole batch, flat or shaped, without the padding."""
        height, width = self._size_of(inputs)
        shapes = output_shapes(len(self._order), replace(self.spec, height=height, width=width))
        pictures = len(inputs)
        are_peaks = len(shapes) == len(PEAK_OUTPUTS)
        arrays = []
        for index, sides in zip(self._order, shapes, strict=True):
            shape, array = (self.spec.batch, *sides), np.asarray(outputs[index])
            is_float = array.dtype.kind == "f"
            is_batches = self._has_batches and array.size % prod(sides) == 0
            if is_batches or (self._has_sizes and array.size > prod(shape)):
                # The memory of an output holds the OM's largest batch, or its largest size.
                array = array.reshape(-1)[: prod(shape)]
            if array.size != prod(shape) or not (is_float or are_peaks):
                raise RuntimeError(
                    f"{self.spec.path}: output {index} came as {array.dtype}{array.shape}, "
                    f"expected {'numbers' if are_peaks else 'floats'} of {shape}"
                )
            kept = array.reshape(shape)[:pictures]
            # A slice would keep the padding in memory; a view of foreign memory may be overwritten.
            own = array.flags.owndata and pictures == self.spec.batch
            arrays.append(kept.astype(np.float32 if is_float else array.dtype, copy=not own))
        return as_result(arrays)


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
        found = format_of(path)
        what = f"it is {found.name}" if found else f"it begins with {start!r}"
        raise UserError(
            f"model {path}: not an OM file ({what}, an OM begins with {OM_MAGIC!r}); "
            "make one with job=convert, or choose backend=auto for an ONNX"
        )


def has_dynamic_batch(inputs: Sequence[Any]) -> bool:
    """Whether an OM, by what `get_inputs()` gave, takes its batch at run time."""
    shapes = [[int(side) for side in tensor.shape] for tensor in inputs]
    return len(shapes) == 1 and shapes[0][0] < 0 < min(shapes[0][1:], default=0)


def at_batch(tensors: Sequence[Any], batch: int) -> list[_Tensor]:
    """The tensors of an OM with several batches, as a run at one of them sees them.

    ais_bench gives an input's batch as -1, an output's as -1 or the largest, and sizes of the
    chosen batch or of the largest.
    """
    described = []
    for tensor in tensors:
        shape = (batch, *(int(side) for side in tensor.shape[1:]))
        size = int(getattr(tensor, "realsize", 0))
        with contextlib.suppress(TypeError):  # a type that numpy does not know
            picture = prod(shape[1:]) * np.dtype(_number(tensor)).itemsize
            size = picture * batch if picture > 0 and size % picture == 0 else size
        described.append(_Tensor(str(tensor.name), tensor.datatype, shape, size))
    return described


def _number(tensor: Any) -> str:
    """The number format of a tensor, a member of `aclruntime.dtype`: "uint8", "float32"."""
    return str(getattr(tensor.datatype, "name", tensor.datatype)).rsplit(".", 1)[-1]


def has_sizes(inputs: Sequence[Any]) -> bool:
    """Whether an OM, by what `get_inputs()` gave, takes its height and width at run time."""
    shapes = [[int(side) for side in tensor.shape] for tensor in inputs]
    open_sides = [i for i, side in enumerate(shapes[0]) if side < 0] if len(shapes) == 1 else []
    return open_sides in ([1, 2], [2, 3])


def at_size(tensors: Sequence[Any], height: int, width: int) -> list[_Tensor]:
    """The tensors of an OM with several input sizes, as a run with these sides sees them.

    ais_bench gives an input's open sides as -1, and an output's as -1 or those of the largest size.
    """
    described = []
    for tensor in tensors:
        shape = [int(side) for side in tensor.shape]
        sides = [i for i, side in enumerate(shape) if side < 0]
        if len(shape) == 4:
            rows, columns = sides if len(sides) == 2 else (2, 3)
            shape[rows], shape[columns] = height, width
        # ais_bench's own number of bytes is that of the largest size, or of the one chosen last.
        size = prod(shape) * np.dtype(_number(tensor)).itemsize
        described.append(_Tensor(str(tensor.name), tensor.datatype, tuple(shape), size))
    return described


def _of_other_sizes(
    spec: ModelSpec, height: int, width: int, known: Sequence[tuple[int, int]] = ()
) -> UserError:
    """That an OM of several sizes lacks one; `known` are those that it has, where that is known."""
    named = ", ".join(map(size_text, known[:6])) + ", ..." * (len(known) > 6)
    choose = "" if spec.size == "own" else f"choose one of {named or 'its own'}, or "
    size = size_text((height, width))
    return UserError(
        f"model {spec.path}: takes one of several input sizes, and {size} (rows x columns) is none "
        f"of them; {choose}build another OM with job=convert convert.sizes=[...,{size}]"
    )


def _of_one_size(spec: ModelSpec) -> UserError:
    return UserError(
        f"preprocess.size=own: the OM {spec.path} was made for one input size; make one for the "
        f"pictures' sizes with job=convert convert.sizes=dataset convert.batches=[{spec.batch}], "
        "or choose preprocess.size=letterbox"
    )


def _choose_batch(session: Any, spec: ModelSpec) -> None:
    """Tell a session which of its batches a run has.

    Raises:
        UserError: the OM was not made for it.
    """
    try:
        session.set_dynamic_batchsize(spec.batch)
    except RuntimeError as error:
        raise UserError(
            f"model {spec.path}: takes one of several batches, and model.batch={spec.batch} is "
            f"none of them ({' '.join(str(error).split())[:200]}); choose one of its own, or build "
            f"another OM with job=convert convert.batches=[...,{spec.batch}]"
        ) from None


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
    dtype, shape = _number(inputs[0]), tuple(int(side) for side in inputs[0].shape)
    match (dtype, shape):
        case ("float32", (batch, 3, height, width)):
            contract = replace(spec.float_contract(), batch=spec.batch)
        case ("uint8", (batch, height, width, 3)):
            spec.refuse_typed_normalisation("on the chip")
            contract = InputContract(spec.height, spec.width, spec.batch)
        case _:
            raise UserError(
                f"{where}: its input is {dtype}{shape}, expected float32 (batch, 3, height, width) "
                "or, with AIPP, uint8 (batch, height, width, 3); build it with job=convert"
            )
    build = f"job=convert convert.batches=[{spec.batch}]"
    if min(shape) < 1:
        raise UserError(f"{where}: its input {shape} is dynamic; build one OM a batch with {build}")
    if (batch, height, width) != (spec.batch, spec.height, spec.width):
        why = " (benchmark.scenario=single_stream always has batch 1)" if spec.batch == 1 else ""
        raise UserError(
            f"{where}: made for model.batch={batch} model.height={height} model.width={width}, "
            f"the run has {spec.batch}, {spec.height} and {spec.width}{why}; set them to the "
            f"OM's, or build another OM with {build}"
        )
    needed = int(inputs[0].realsize)
    if needed != prod(shape) * np.dtype(dtype).itemsize:
        raise UserError(
            f"{where}: its input {dtype}{shape} wants {needed} bytes, so it is not what it says; "
            "build it with job=convert"
        )
    return contract


def described_order(outputs: Sequence[Any], spec: ModelSpec) -> tuple[int, ...]:
    """`output_order` of an OM, whose shapes are checked as well.

    Size and offset have the same shape, so only names or the order tell them apart.

    Args:
        outputs: What `get_outputs()` gave: objects with name and shape.
        spec: The model.

    Raises:
        UserError: outputs that are missing, or not of CenterFace's shapes.
    """
    names = [str(getattr(tensor, "name", "") or "") for tensor in outputs]
    order = output_order(names, spec)
    heads: tuple[str, ...] = HeadMaps._fields
    advice = "give an OM of CenterFace, or its names in model.outputs"
    if len(order) == len(PEAK_OUTPUTS):
        heads, advice = PEAK_OUTPUTS, "set model.top_k to the export's"
    for index, sides, head in zip(order, output_shapes(len(order), spec), heads, strict=True):
        shape = tuple(int(side) for side in outputs[index].shape)
        expected = (spec.batch, *sides)
        if prod(shape) != prod(expected) or (len(shape) == 4 and shape[1] != expected[1]):
            raise UserError(
                f"model {spec.path}: output {index} ({names[index]!r}) is {shape}, expected "
                f"{expected} for {head}; {advice}"
            )
    return order


def _check_packages() -> None:
    """Raise a `UserError` if `InferSession` is not installed; nothing is imported."""
    try:
        for module in ("aclruntime", "ais_bench.infer.interface"):
            if importlib.util.find_spec(module) is None:
                raise ImportError(f"No module named {module!r}")
    except ImportError as error:
        raise _unusable(str(error)) from None


def _unusable(reason: str) -> UserError:
    return UserError(
        f"backend=om: no usable ais_bench ({reason}); get it: {BACKENDS['om'].install}"
    )


def _open(path: Path, index: int) -> Any:
    try:
        from ais_bench.infer.interface import InferSession

        return InferSession(int(index), str(path))
    except ImportError as error:
        raise _unusable(f"{error}; is set_env.sh sourced?") from None
    except RuntimeError as error:
        raise RuntimeError(
            f"NPU {physical_chip(index)}: {path} could not be loaded: {error}"
        ) from error


def physical_chip(index: int) -> str:
    """The number on this host of the chip that a process sees under an index."""
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "").split(",")
    is_listed = index < len(visible) and visible[index].strip()
    return visible[index].strip() if is_listed else str(index)


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

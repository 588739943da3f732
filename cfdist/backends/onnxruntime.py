"""ONNX Runtime: CPU, CUDA, CANN and whatever other provider is installed."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.backends.onnx_file import load_onnx, takes_u8
from cfdist.backends.onnx_operators import odd_parts
from cfdist.backends.outputs import as_result
from cfdist.backends.provider_options import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    as_words,
    numeric,
    settings_of_providers,
)
from cfdist.backends.trial import refuse_if_it_fails
from cfdist.decode import HeadMaps, Peaks
from cfdist.errors import UserError, did_you_mean
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract

if TYPE_CHECKING:
    import onnxruntime as ort  # the driver runs no model, and the import takes its time

# Providers of devices that Ray counts -> their kind. They take a device's index.
_DEVICE_KINDS = {
    CUDA_PROVIDER: "gpu",
    TENSORRT_PROVIDER: "gpu",
    "NvTensorRTRTXExecutionProvider": "gpu",
    "MIGraphXExecutionProvider": "gpu",
    "ROCMExecutionProvider": "gpu",
    "CANNExecutionProvider": "npu",
}
# Has the session remember which provider got which nodes.
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
# Left to itself, ONNX Runtime also quantises the layers that a file keeps in float32 between
# quantised ones, with one scale for all of a layer's weights.
NOT_AS_WRITTEN = ("WeightBiasQuantization",)


class OnnxRuntimeBackend(Backend):
    """An ONNX run by ONNX Runtime.

    On the CPU each stream runs a batch of its own and the streams share the device's threads: two
    streams of one thread each give 10 to 25 % more pictures a second than one stream of two.

    ONNX Runtime itself goes on with the CPU where a provider cannot be used; here that is refused.

    Options: `providers`, execution providers by falling preference, each a name;
    `provider_options`, a mapping of their options or `None`.
    """

    # ONNX Runtime 1.32 on 2 cores: 6.0 GB for 32 pictures of 800x800 in two streams, 14.2 GB for
    # 64 (its arena doubles). Nearly half is its memory pattern, which makes it 3 to 8 % faster.
    capabilities: ClassVar[Capabilities] = Capabilities(
        learns_shape=True,
        activation_bytes_per_pixel=350,
        numeric_options=("providers", "provider_options"),
        streams_need_threads=True,
        takes_any_size=True,
    )

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        import onnxruntime as ort

        super().__init__(spec, settings)
        model = load_onnx(spec)
        bytes_contract = InputContract(spec.height, spec.width, None)
        self.contract = bytes_contract if takes_u8(model) else spec.float_contract()
        providers = settings.options["providers"]
        check_providers(providers)
        given = settings.options.get("provider_options")
        chosen = settings_of_providers(providers, given)
        if {CUDA_PROVIDER, TENSORRT_PROVIDER} & chosen.keys():
            _load_cuda_of_wheels()
        self.streams = max(1, min(settings.streams, settings.threads))
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads // self.streams
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = spec.size == "letterbox"  # it keeps one for each shape
        options.log_severity_level = 3  # its warnings are about the exporter, not for the user
        # Idle threads that spin take the cores from the reader threads and from other devices.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
        index = {"device_id": str(settings.index)}
        with_index = [
            (name, (index if name in _DEVICE_KINDS else {}) | its) for name, its in chosen.items()
        ]
        with graph_errors_as_user_error(spec):
            self._session = ort.InferenceSession(
                model.SerializeToString(),
                options,
                with_index,
                enable_fallback=0,
                disabled_optimizers=NOT_AS_WRITTEN,
            )
        self._session.disable_fallback()
        self.runs_on = used_providers(self._session, providers) + as_words(given)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`."""
        check_providers(options["providers"])
        settings_of_providers(options["providers"], options.get("provider_options"))
        parts = odd_parts(load_onnx(spec))
        is_plain = not parts and options["providers"] == [CPU_PROVIDER]
        # The devices of other kinds may be on other hosts.
        if not is_plain and cls.device_kind(options) == "cpu":
            refuse_if_it_fails("onnxruntime", spec, options, parts)

    @classmethod
    def device_kind(cls, options: Mapping[str, Any]) -> str:
        """See `Backend.device_kind`; the first provider decides."""
        return _DEVICE_KINDS.get(next(iter(options["providers"]), ""), "cpu")

    @classmethod
    def numeric_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Backend.numeric_options`; without options of providers, as before there were any."""
        its = numeric(options.get("provider_options"))
        return {"providers": options.get("providers")} | ({"provider_options": its} if its else {})

    def infer(self, inputs: NDArray[np.generic]) -> HeadMaps | Peaks:
        """See `Backend.infer`; inputs are as `contract`, and so the file, says."""
        return as_result(self._session.run(self._outputs, {self._input: inputs}))


@contextlib.contextmanager
def graph_errors_as_user_error(spec: ModelSpec) -> Iterator[None]:
    """Turn ONNX Runtime's refusals of a graph into bad input; a device's failures stay.

    Raises:
        UserError: in place of ONNX Runtime's own error.
    """
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    try:
        yield
    except (errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented) as error:
        reason = str(error).rpartition("] : ")[2] or str(error)
        raise UserError(
            f"model {spec.path}: ONNX Runtime {ort.__version__} cannot run it ({reason[:300]}); "
            "choose backend=openvino, or export it in float32"
        ) from None


def _load_cuda_of_wheels() -> None:
    """Load CUDA and cuDNN from the wheels that lie beside ONNX Runtime's, if any do.

    It does not look there by itself. Where a library is missing it prints so and goes on;
    `used_providers` then says which provider could not be initialised.
    """
    import onnxruntime as ort

    if load := getattr(ort, "preload_dlls", None):
        with contextlib.redirect_stdout(io.StringIO()):
            load()


def accelerating_providers() -> dict[str, str]:
    """The installed providers of devices that Ray counts, with the kind of device."""
    import onnxruntime as ort

    there = ort.get_available_providers()
    return {name: kind for name, kind in _DEVICE_KINDS.items() if name in there}


def check_providers(providers: Sequence[str]) -> None:
    """Raise a `UserError` for providers that the installed ONNX Runtime does not have or use."""
    if not providers:
        raise UserError(f"backend.providers=[]: name at least one, such as {CPU_PROVIDER}")
    if list(providers) == [CPU_PROVIDER]:  # every ONNX Runtime has it
        return
    import onnxruntime as ort

    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            raise UserError(
                f"backend.providers: {name!r} is not in the installed onnxruntime "
                f"{ort.__version__} (available: {', '.join(available)})"
                + (
                    "; onnxruntime-gpu has it and takes onnxruntime's place: docs/installing.md"
                    if name in (CUDA_PROVIDER, TENSORRT_PROVIDER)
                    else did_you_mean(name, available)
                )
            )
    unused = (
        providers[list(providers).index(CPU_PROVIDER) + 1 :] if CPU_PROVIDER in providers else ()
    )
    if unused:
        raise UserError(
            f"backend.providers: {', '.join(map(repr, unused))} would never be used, because "
            f"{CPU_PROVIDER} before it takes the whole model; put {CPU_PROVIDER} last"
        )


def used_providers(session: ort.InferenceSession, wanted: Sequence[str]) -> str:
    """The providers that a session runs the model with, by the session's own account.

    Returns:
        "CPUExecutionProvider", or with more than one the number of nodes that each runs:
        "CUDAExecutionProvider (120 nodes), CPUExecutionProvider (3 nodes)".

    Raises:
        UserError: a wanted provider could not be initialised, or the first one runs no node.
    """
    import onnxruntime as ort

    there = session.get_providers()
    if lost := [name for name in wanted if name not in there]:
        raise UserError(
            f"backend.providers: {', '.join(lost)} could not be initialised, ONNX Runtime "
            f"{ort.__version__} would go on with {', '.join(there)}; see that its driver and "
            f"libraries are installed and a device is free, or set backend.providers=[{there[0]}]"
        )
    nodes = assigned_nodes(session)
    if not nodes:  # this ONNX Runtime does not tell
        return ", ".join(there)
    if wanted[0] not in nodes:
        raise UserError(
            f"backend.providers: {wanted[0]} runs no operator of this model, ONNX Runtime gives "
            f"them all to {', '.join(nodes)}; set backend.providers=[{', '.join(nodes)}]"
        )
    if len(nodes) == 1:
        return wanted[0]
    return ", ".join(f"{name} ({count} nodes)" for name, count in nodes.items())


def assigned_nodes(session: ort.InferenceSession) -> dict[str, int]:
    """How many nodes each provider runs; empty for an ONNX Runtime that does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    counts: Counter[str] = Counter()
    for part in tell() if tell else ():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)

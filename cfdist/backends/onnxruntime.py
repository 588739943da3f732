"""ONNX Runtime: CPU, CUDA, CANN and whatever other provider is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.backends.onnx_file import load_onnx, takes_u8
from cfdist.backends.outputs import as_result
from cfdist.decode import HeadMaps, Peaks
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract

CPU_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeBackend(Backend):
    """An ONNX run by ONNX Runtime.

    On the CPU each stream runs a batch of its own and the streams share the device's threads: two
    streams of one thread each give 10 to 25 % more pictures a second than one stream of two.

    Options: `providers`, execution providers by falling preference, each a name.
    """

    # ONNX Runtime 1.32 on 2 cores: 6.0 GB for 32 pictures of 800x800 in two streams, 14.2 GB for
    # 64 (its arena doubles). Nearly half is its memory pattern, which makes it 3 to 8 % faster.
    capabilities: ClassVar[Capabilities] = Capabilities(
        learns_shape=True, activation_bytes_per_pixel=350, streams_need_threads=True
    )

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        model = load_onnx(spec)
        bytes_contract = InputContract(spec.height, spec.width, None)
        self.contract = bytes_contract if takes_u8(model) else spec.float_contract()
        providers = settings.options["providers"]
        check_providers(providers)
        self.streams = max(1, min(settings.streams, settings.threads))
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads // self.streams
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about the exporter, not for the user
        # Idle threads that spin take the cores from the reader threads and from other devices.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            model.SerializeToString(),
            options,
            [
                (name, {} if name == CPU_PROVIDER else {"device_id": str(settings.index)})
                for name in providers
            ],
        )
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    @classmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """See `Backend.check`."""
        check_providers(options["providers"])
        load_onnx(spec)

    @classmethod
    def device_kind(cls, options: Mapping[str, Any]) -> str:
        """See `Backend.device_kind`; the first provider decides."""
        first = options["providers"][0]
        return {"CUDAExecutionProvider": "gpu", "CANNExecutionProvider": "npu"}.get(first, "cpu")

    def infer(self, inputs: NDArray[np.generic]) -> HeadMaps | Peaks:
        """See `Backend.infer`; inputs are as `contract`, and so the file, says."""
        return as_result(self._session.run(self._outputs, {self._input: inputs}))


def check_providers(providers: Sequence[str]) -> None:
    """Raise a `UserError` for providers that the installed ONNX Runtime does not have."""
    if not providers:
        raise UserError(f"backend.providers=[]: name at least one, such as {CPU_PROVIDER}")
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            raise UserError(
                f"backend.providers: {name!r} is not in the installed onnxruntime "
                f"{ort.__version__} (available: {', '.join(available)})"
            )

"""ONNX Runtime: CPU, CUDA, CANN and whatever other provider is installed."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from cfdist.backends.base import Backend, DeviceSettings
from cfdist.backends.onnx_file import load_onnx
from cfdist.decode import HeadMaps
from cfdist.errors import UserError
from cfdist.model import ModelSpec

CPU_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeBackend(Backend):
    """An ONNX run by ONNX Runtime.

    Options: `providers`, execution providers by falling preference, each a name.
    """

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        super().__init__(spec, settings)
        self.contract = spec.float_contract()
        providers = list(settings.options["providers"])
        check_providers(providers)
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are about the exporter, not for the user
        # Idle threads that spin take the cores from the feeders and from other devices.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            load_onnx(spec).SerializeToString(),
            options,
            providers=[_with_index(name, settings.index) for name in providers],
        )
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    @classmethod
    def check(cls, spec: ModelSpec, options: dict[str, Any]) -> None:
        """See `Backend.check`."""
        check_providers(options["providers"])
        load_onnx(spec)

    @classmethod
    def device_kind(cls, options: dict[str, Any]) -> str:
        """See `Backend.device_kind`; the first provider decides."""
        first = options["providers"][0]
        return {"CUDAExecutionProvider": "gpu", "CANNExecutionProvider": "npu"}.get(first, "cpu")

    def infer(self, inputs: NDArray) -> HeadMaps:
        """See `Backend.infer`; inputs are (n, 3, H, W) float32, normalised."""
        return HeadMaps(*self._session.run(self._outputs, {self._input: inputs}))


def check_providers(providers: list[str]) -> None:
    """Refuse providers that the installed ONNX Runtime does not have.

    Raises:
        UserError: names the provider and what there is.
    """
    if not providers:
        raise UserError(f"backend.providers=[]: name at least one, such as {CPU_PROVIDER}")
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            raise UserError(
                f"backend.providers: {name!r} is not in the installed onnxruntime "
                f"{ort.__version__} (available: {', '.join(available)})"
            )


def _with_index(provider: str, index: int) -> str | tuple[str, dict[str, str]]:
    if provider == CPU_PROVIDER:
        return provider
    return (provider, {"device_id": str(index)})

"""A model together with the backend that runs it: plain data that travels to the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cfdist import backends
from cfdist.backends.base import Backend, Capabilities, DeviceSettings
from cfdist.errors import UserError
from cfdist.model import ModelSpec, refuse_other_model
from cfdist.model.formats import refuse_other_format
from cfdist.model.shipped import ModelFiles, unpack


@dataclass(frozen=True)
class BackendModel:
    """What a device loads.

    Attributes:
        backend: The resolved backend's name, a key of `cfdist.backends.BACKENDS`.
        spec: The model.
        options: The backend's own settings.
        remark: Why this backend was chosen, one line; empty if the person named it.
        fetch: Gives the model's files to devices that do not see them; `None`: they see them.
    """

    backend: str
    spec: ModelSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    fetch: Callable[[], ModelFiles] | None = None

    @property
    def backend_class(self) -> type[Backend]:
        """The backend's class; imports the backend's package."""
        return backends.backend_class(self.backend)

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can do."""
        return self.backend_class.capabilities

    @property
    def kind(self) -> str:
        """What a device is: "cpu", "gpu" or "npu"."""
        return self.backend_class.device_kind(self.options)

    @property
    def first_seconds(self) -> float:
        """See `Backend.first_seconds`."""
        return self.backend_class.first_seconds(self.spec.batch, self.options)

    @property
    def is_simulated(self) -> bool:
        """Whether no model runs."""
        return self.capabilities.is_simulated

    @property
    def numeric_options(self) -> dict[str, Any]:
        """The backend's settings that change the model's numbers."""
        return self.backend_class.numeric_options(self.options)

    def check(self) -> None:
        """Look at the model file and the options without a device.

        Raises:
            UserError: the backend cannot run the file.
        """
        if self.spec.size == "own" and not self.capabilities.takes_any_size:
            raise UserError(
                f"preprocess.size=own: backend={self.backend} runs a model of one input size; "
                "choose backend=openvino, onnxruntime or torch with the ONNX or checkpoint, or "
                "preprocess.size=letterbox"
            )
        if not self.is_simulated:
            refuse_other_format(self.spec.path, [self.backend], f"backend={self.backend}")
        self.backend_class.check(self.spec, self.options)

    def load(self, settings: DeviceSettings) -> Backend:
        """Load the model on a device.

        Args:
            settings: The device's; its options are replaced by the model's.

        Raises:
            UserError: the model does not fit the device or the run, or is another one here.
        """
        spec = self.spec if self.fetch is None else unpack(self.spec, self.fetch())
        if not self.is_simulated:
            refuse_other_model(spec)
        return self.backend_class(spec, replace(settings, options=self.options))

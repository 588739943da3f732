"""What every inference backend is: one small class, the same few members."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from cfdist.decode import HeadMaps, Peaks
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do."""

    group: int = 1
    has_fixed_batch: bool = False
    learns_shape: bool = False
    activation_bytes_per_pixel: int = 350
    skips_black: bool = False
    is_simulated: bool = False


class _Shim:
    def __get__(self, obj, cls):
        return Capabilities(
            cls.group,
            cls.has_fixed_batch,
            cls.learns_shape,
            cls.activation_bytes_per_pixel,
            cls.skips_black,
            cls.is_simulated,
        )


@dataclass(frozen=True)
class DeviceSettings:
    """What one device actor gives its backend.

    Attributes:
        threads: CPU threads that the device may use.
        slots: Inferences that the device should take at once, where its backend can.
        index: The device's index as the actor's process sees it.
        options: The backend's own settings (`conf/backend/<name>.yaml`).
    """

    threads: int = 1
    streams: int = 1
    index: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    number: int = 0


class Backend(ABC):
    """A loaded model on one device.

    Attributes:
        contract: What `infer` takes.
        slots: How many threads may be inside `infer` at once; more gain nothing.
        group: How many batches `infer_many` should be given at once.
        has_fixed_batch: A batch costs the same however few pictures are in it.
        learns_shape: The first batch of a shape lays out the memory that the second takes: only a
            whole batch warms it up, and the one after that is slow as well.
        activation_bytes_per_pixel: What one more picture at once costs a CPU device, bytes an
            input pixel; where it was not measured, the most of those that were.
        skips_black: Black parts of the input cost it less: it is not to be measured with zeros.
        is_simulated: No model runs: there is no file, and nothing is found.
    """

    contract: InputContract
    capabilities = _Shim()
    streams: int = 1
    group: int = 1
    has_fixed_batch: bool = False
    learns_shape: bool = False
    activation_bytes_per_pixel: int = 350
    skips_black: bool = False
    is_simulated: bool = False

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        self.spec = spec
        self.settings = settings

    @classmethod
    @abstractmethod
    def check(cls, spec: ModelSpec, options: dict[str, Any]) -> None:
        """Look at the model file and the options without loading the model on a device.

        Raises:
            UserError: the backend cannot run that file.
        """

    @classmethod
    def device_kind(cls, options: dict[str, Any]) -> str:
        """What a device actor needs: "cpu", "gpu" or "npu"."""
        return "cpu"

    @classmethod
    def pictures_at_once(cls, batch: int, threads: int) -> int:
        """How many pictures of a batch a CPU slot of some threads computes together."""
        return batch

    @abstractmethod
    def infer(self, inputs: NDArray) -> HeadMaps | Peaks:
        """Run the model on 1 to `spec.batch` pictures.

        Args:
            inputs: C-contiguous array of `contract.shape(n)` and dtype. A backend whose model has
                a fixed batch pads it and drops the padding's outputs.

        Returns:
            Head maps of n pictures, or their peaks where the model's graph picks them; the arrays
            are the caller's.
        """

    def infer_many(self, batches: Sequence[NDArray]) -> list[HeadMaps | Peaks]:
        """Run several batches; a backend that can overlaps their copies with computing."""
        return [self.infer(inputs) for inputs in batches]

    def device_times_ms(self) -> list[float]:
        """Pure device time of each batch since the last call, ms; empty where it is not known."""
        return []

    def close(self) -> None:  # noqa: B027 (most backends have nothing to give back)
        """Give the device back."""

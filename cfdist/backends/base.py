"""What every inference backend is: one small class, the same few members."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cfdist.decode import HeadMaps, Peaks
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract


@dataclass(frozen=True)
class Capabilities:
    """What the callers of a backend may count on, the same for all of its devices.

    Attributes:
        group: How many batches `Backend.infer_many` should be given at once.
        has_fixed_batch: A batch costs the same however few pictures are in it.
        learns_shape: The first batch of a shape lays out the memory that the second one takes:
            only a whole batch warms the backend up, and the second batch is slow as well.
        activation_bytes_per_pixel: What one more picture at once costs a CPU device, bytes an
            input pixel; for a backend that was not measured, the highest measured value.
        is_simulated: The backend runs no model: it needs no file and finds nothing.
        streams_need_threads: A stream has at least one of the device's CPU threads to itself.
        numeric_options: The backend's settings that change a model's numbers.
        takes_any_size: A loaded model takes batches of any height and width, multiples of 32, or of
            several, see `Backend.takes_size`.
    """

    group: int = 1
    has_fixed_batch: bool = False
    learns_shape: bool = False
    activation_bytes_per_pixel: int = 350
    is_simulated: bool = False
    streams_need_threads: bool = False
    numeric_options: tuple[str, ...] = ()
    takes_any_size: bool = False


@dataclass(frozen=True)
class DeviceSettings:
    """What one device actor gives its backend.

    Attributes:
        threads: CPU threads that the device may use.
        streams: Inferences that the device should take at once, if its backend can.
        index: The device's index as the actor's process sees it.
        options: The backend's own settings (`conf/backend/<name>.yaml`).
        number: The device's number in the run.
        starts: How often the device was started before in the run.
        needs_heads: The caller wants head maps, also from a backend that would pick their peaks.
    """

    threads: int = 1
    streams: int = 1
    index: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    starts: int = 0
    needs_heads: bool = False


class Backend(ABC):
    """A loaded model on one device.

    Attributes:
        contract: What `infer` takes.
        streams: How many threads may be inside `infer` at once; more gain nothing.
        runs_on: What the runtime itself says that it computes on, as results name it.
        capabilities: What holds for every device of this backend.
    """

    contract: InputContract
    streams: int = 1
    runs_on: str = ""
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, spec: ModelSpec, settings: DeviceSettings) -> None:
        self.spec = spec
        self.settings = settings

    @classmethod
    @abstractmethod
    def check(cls, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        """Look at the model file and the options without loading the model on a device.

        Raises:
            UserError: the backend cannot run that file.
        """

    @classmethod
    def known_sizes(cls, spec: ModelSpec) -> frozenset[tuple[int, int]] | None:
        """The input sizes that the model file takes at own size, (height, width).

        Returns:
            `None` if it takes any, or if only a device can tell.
        """
        return None

    @classmethod
    def device_kind(cls, options: Mapping[str, Any]) -> str:
        """What a device actor needs: "cpu", "gpu" or "npu"."""
        return "cpu"

    @classmethod
    def numeric_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the settings that change a model's numbers, see `Capabilities`."""
        return {name: options.get(name) for name in cls.capabilities.numeric_options}

    @classmethod
    def first_seconds(cls, batch: int, options: Mapping[str, Any]) -> float:
        """What loading the model, or the first work of a device, takes at most, seconds.

        A device that takes longer hangs.
        """
        return 600.0

    @classmethod
    def pictures_at_once(cls, batch: int, threads: int) -> int:
        """How many pictures of a batch a CPU stream of some threads computes together."""
        return batch

    @abstractmethod
    def infer(self, inputs: NDArray[np.generic]) -> HeadMaps | Peaks:
        """Run the model on 1 to `spec.batch` pictures.

        Args:
            inputs: C-contiguous array of `contract.shape(n)` and dtype, for pictures at their own
                size with a height and width of its own. A backend whose model has
                a fixed batch pads it and drops the padding's outputs.

        Returns:
            Head maps of n pictures, or their peaks if the model's graph picks them; the arrays
            are the caller's.
        """

    def infer_many(self, batches: Sequence[NDArray[np.generic]]) -> list[HeadMaps | Peaks]:
        """Run several batches; a backend that can overlaps their copies with computing."""
        return [self.infer(inputs) for inputs in batches]

    def takes_size(self, height: int, width: int) -> bool:
        """Whether `infer` takes pictures of an input size, multiples of 32, at own size."""
        return True

    def device_times_ms(self) -> list[float]:
        """Pure device time of each batch since the last call, ms; empty if it is not known."""
        return []

    def close(self) -> None:  # noqa: B027 (most backends have nothing to give back)
        """Give the device back."""

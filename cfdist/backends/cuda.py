"""A batch on a CUDA device at the least cost: pinned memory, a stream of its own, a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Compute = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class CudaLane:
    """One of the inferences that a CUDA device takes at once.

    Batches of the fixed shape are copied through pinned memory and computed by a CUDA graph: one
    launch in place of some hundred. A smaller batch is computed with what the last one left in the
    other rows, by the same kernels: what is found in a picture does not depend on its batch.
    """

    def __init__(
        self, compute: Compute, device: torch.device, fixed: tuple[int, ...] | None
    ) -> None:
        """Lay out the memory and record the graph.

        Args:
            compute: From (n, H, W, 3) u8 to tensors of n pictures, all on the device.
            device: A CUDA device.
            fixed: The shape of the largest batch; `None`: any shape comes, and nothing is recorded.
        """
        self._compute = compute
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._is_fixed = fixed is not None
        if fixed is None:
            return
        with torch.inference_mode(), torch.cuda.device(device):
            self._pinned = torch.zeros(fixed, dtype=torch.uint8, pin_memory=True)
            self._input = self._pinned.to(device)
            with torch.cuda.stream(self._stream):
                compute(self._input)  # what libraries do once must not happen in a recording
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._outputs = compute(self._input)

    def infer(self, inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """The outputs of n pictures as the caller's arrays; inputs are (n, H, W, 3) u8."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if self._is_fixed:
                self._pinned[: len(inputs)].copy_(torch.from_numpy(inputs))
                self._input.copy_(self._pinned, non_blocking=True)
                self._graph.replay()
                outputs = [one[: len(inputs)] for one in self._outputs]
            else:
                outputs = [*self._compute(torch.from_numpy(inputs).to(self._device))]
            return [one.cpu().numpy() for one in outputs]  # waits for the stream

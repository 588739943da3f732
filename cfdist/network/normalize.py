"""Letterboxed pictures to the network's input: a PyTorch layer for a device or a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Normalize(nn.Module):
    """(n, H, W, 3) uint8 BGR pictures to (n, 3, H, W) float32: (u8 * scale - mean) / std.

    The same steps in the same order as `cfdist.preprocess.to_model_input`, to the same bits.

    Args:
        color: "BGR" or "RGB", the order in which the network wants the channels.
        scale: What u8 values are multiplied with first.
        mean: Three values in `color` order.
        std: Three values in `color` order.
    """

    order: torch.Tensor | None
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, color: str, scale: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.scale = scale
        self.shifts = any(mean) or any(value != 1.0 for value in std)
        self.register_buffer("order", torch.tensor([2, 1, 0]) if color == "RGB" else None)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """See the class; the result lies in memory as the pictures do, channels last."""
        x = pictures.permute(0, 3, 1, 2)
        if self.order is not None:
            # Whole planes move; reordering the last axis moves single bytes.
            x = x.index_select(1, self.order)
        x = x.float()
        if self.scale != 1.0:
            x = x * self.scale
        return (x - self.mean) / self.std if self.shifts else x

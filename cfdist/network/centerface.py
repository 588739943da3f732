"""CenterFace in PyTorch: normalisation, a MobileNetV2 backbone, a neck, four 1x1 heads.

Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019. Module names
are those of the published PyTorch checkpoints, so their `state_dict` loads unchanged. Modules are
defined in the order in which they run.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cfdist.preprocess import InputContract

# The batch norms' epsilon in the neck's lateral and up convolutions. The backbone and the neck's
# last convolution have PyTorch's 1e-5. Checkpoints do not hold epsilons.
_NECK_EPS = 1e-3

# MobileNetV2 at width 1.0, without its last convolution. Each part ends where the neck taps it, at
# strides 4, 8, 16 and 32. A stage is (expansion, channels, blocks, stride of the first block).
_BACKBONE_PARTS = {
    "feature_1": [(1, 16, 1, 1), (6, 24, 2, 2)],
    "feature_2": [(6, 32, 3, 2)],
    "feature_4": [(6, 64, 4, 2), (6, 96, 3, 1)],
    "feature_6": [(6, 160, 3, 2), (6, 320, 1, 1)],
}


@dataclass(frozen=True)
class Variant:
    """What the shapes of the weights do not say about a published network.

    Attributes:
        activation: The backbone's activation; the neck always has plain ReLU.
        depthwise_ups: Whether the neck's transposed convolutions have one group per channel.
    """

    activation: type[nn.Module]
    depthwise_ups: bool


# By model convention, the keys of `cfdist.decode.CONVENTIONS`.
VARIANTS = {
    "centerface_pytorch": Variant(nn.ReLU6, depthwise_ups=True),
    "centerface": Variant(nn.ReLU, depthwise_ups=False),
}


class CenterFace(nn.Module):
    """The network from normalised pictures to the four head maps, with random weights.

    Args:
        convention: The model convention, a key of `VARIANTS`.
        neck_width: Channels of the neck: 64 with the default options of the training code
            (`head_conv`), 24 in the original authors' file.
    """

    def __init__(self, convention: str, neck_width: int) -> None:
        super().__init__()
        variant = VARIANTS[convention]
        self.base = _Backbone(variant.activation)
        self.dla_up = _Neck(neck_width, variant.depthwise_ups)
        self.hm = nn.Sequential(nn.Conv2d(neck_width, 1, 1), nn.Sigmoid())
        self.wh = nn.Conv2d(neck_width, 2, 1)
        self.hm_offset = nn.Conv2d(neck_width, 2, 1)
        self.landmarks = nn.Conv2d(neck_width, 10, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Head maps of a batch.

        Args:
            x: (n, 3, H, W) float, normalised; H and W are multiples of 32, the deepest stride.

        Returns:
            `hm` (n, 1, H/4, W/4) in 0..1, `wh` (n, 2, ..), `hm_offset` (n, 2, ..) and
            `landmarks` (n, 10, ..).
        """
        return self.heads(self.dla_up(self.base(x)))

    def heads(self, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The head maps of what the neck gives, (n, width, H/4, W/4)."""
        return self.hm(y), self.wh(y), self.hm_offset(y), self.landmarks(y)


class Normalize(nn.Module):
    """(n, H, W, 3) uint8 BGR pictures to (n, 3, H, W) float32: (u8 * scale - mean) / std.

    The steps and their order are those of `cfdist.preprocess.to_model_input`, so the bits are too.

    Args:
        contract: The network's own input; its colour order, scale, mean and std are followed.
    """

    order: torch.Tensor | None
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, contract: InputContract) -> None:
        super().__init__()
        self.scale = contract.scale
        self.shifts = any(contract.mean) or any(value != 1.0 for value in contract.std)
        is_rgb = contract.color == "RGB"
        self.register_buffer("order", torch.tensor([2, 1, 0]) if is_rgb else None)
        for name, values in (("mean", contract.mean), ("std", contract.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """See the class; the result keeps the pictures' memory order, channels last."""
        x = pictures.permute(0, 3, 1, 2)
        if self.order is not None:
            # `index_select` moves whole planes; reordering the last axis moves single bytes.
            x = x.index_select(1, self.order)
        x = x.float()
        if self.scale != 1.0:
            x = x * self.scale
        return (x - self.mean) / self.std if self.shifts else x


def fold_batch_norms(network: CenterFace) -> CenterFace:
    """A copy of the network for inference: each batch norm folded into its convolution.

    The scaled weights are computed in float64 and rounded once; head maps change by float32
    rounding only.
    """
    folded = copy.deepcopy(network).eval().double()
    for module in [one for one in folded.modules() if isinstance(one, nn.Sequential)]:
        for i, (conv, norm) in enumerate(itertools.pairwise(list(module))):
            if isinstance(norm, nn.BatchNorm2d):
                assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
                # A dense transposed convolution has its outputs on the weights' second axis.
                is_dense = isinstance(conv, nn.ConvTranspose2d) and conv.groups == 1
                module[i] = fuse_conv_bn_eval(conv, norm, transpose=is_dense)
                module[i + 1] = nn.Identity()
    return folded.float()


def _conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    activation: type[nn.Module] = nn.ReLU,
    stride: int = 1,
    groups: int = 1,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution (same padding, no bias), batch norm, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
        activation(inplace=True),
    )


class _InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1x1, depthwise 3x3, project 1x1 without activation."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, expansion: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [_conv_bn(inputs, hidden, 1, activation)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_bn(hidden, hidden, 3, activation, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


class _Backbone(nn.Module):
    """MobileNetV2 up to its 320 channels; its outputs are the taps, the deepest one last."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        inputs = 32
        blocks: list[nn.Module] = [_conv_bn(3, inputs, 3, activation, stride=2)]
        for name, stages in _BACKBONE_PARTS.items():
            for expansion, outputs, count, stride in stages:
                for i in range(count):
                    step = stride if i == 0 else 1
                    blocks.append(_InvertedResidual(inputs, outputs, step, expansion, activation))
                    inputs = outputs
            self.add_module(name, nn.Sequential(*blocks))
            blocks = []

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        taps = [x]
        for part in self.children():
            taps.append(part(taps[-1]))
        return taps[1:]


class _Up(nn.Module):
    """One step up the neck: the deeper map at twice its size plus the next tap's lateral."""

    def __init__(self, width: int, tap_channels: int, depthwise: bool) -> None:
        super().__init__()
        groups = width if depthwise else 1
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2, groups=groups, bias=False),
            nn.BatchNorm2d(width, eps=_NECK_EPS),
            nn.ReLU(inplace=True),
        )
        self.conv = _conv_bn(tap_channels, width, 1, eps=_NECK_EPS)

    def forward(self, deeper: torch.Tensor, tap: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.up(deeper) + self.conv(tap)
        return y


class _Neck(nn.Module):
    """From the four taps to one map at stride 4, deepest tap first."""

    def __init__(self, width: int, depthwise_ups: bool) -> None:
        super().__init__()
        *channels, deepest = (stages[-1][1] for stages in _BACKBONE_PARTS.values())
        self.conv = _conv_bn(deepest, width, 1, eps=_NECK_EPS)
        for i, tap_channels in enumerate(reversed(channels)):
            self.add_module(f"up_{i}", _Up(width, tap_channels, depthwise_ups))
        self.conv_last = _conv_bn(width, width, 3)

    def forward(self, taps: list[torch.Tensor]) -> torch.Tensor:
        conv, *ups, conv_last = self.children()
        x = conv(taps[-1])
        for up, tap in zip(ups, taps[-2::-1], strict=True):
            x = up(x, tap)
        y: torch.Tensor = conv_last(x)
        return y

"""CenterFace in PyTorch: a MobileNetV2 backbone, a 24-channel neck to stride 4, four 1x1 heads.

Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019. Module names
are those of the published PyTorch checkpoints, so that their `state_dict` loads as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

INPUT_MULTIPLE = 32  # the deepest tap's stride: input sides are multiples of it
NECK_CHANNELS = 24

# The normalisation layers' epsilon in the neck's lateral and up convolutions; the backbone and the
# neck's last convolution have PyTorch's 1e-5. No checkpoint holds it.
_NECK_EPS = 1e-3


@dataclass(frozen=True)
class Variant:
    """What tells the published networks apart; no `state_dict` states the activation.

    Attributes:
        activation: "relu6" or "relu", the backbone's; the neck always has plain ReLU.
        depthwise_ups: Whether the neck's transposed convolutions have one group a channel.
    """

    activation: Literal["relu6", "relu"]
    depthwise_ups: bool


# By model convention, the keys of `cfdist.decode.CONVENTIONS`.
VARIANTS = {
    "centerface_pytorch": Variant("relu6", depthwise_ups=True),
    "centerface": Variant("relu", depthwise_ups=False),
}


class CenterFace(nn.Module):
    """The network, from normalised pictures to the four head maps.

    Args:
        activation: The backbone's, "relu6" (the PyTorch training code's) or "relu" (the original
            authors'); the neck always has plain ReLU.
        depthwise_ups: Whether the transposed convolutions are depthwise (the former) or dense.
    """

    def __init__(
        self,
        activation: Literal["relu6", "relu"] = "relu6",
        depthwise_ups: bool = True,
    ) -> None:
        super().__init__()
        self.base = _Backbone({"relu6": nn.ReLU6, "relu": nn.ReLU}[activation])
        self.dla_up = _Neck(depthwise_ups)
        self.hm = nn.Sequential(nn.Conv2d(NECK_CHANNELS, 1, 1), nn.Sigmoid())
        self.wh = nn.Conv2d(NECK_CHANNELS, 2, 1)
        self.hm_offset = nn.Conv2d(NECK_CHANNELS, 2, 1)
        self.landmarks = nn.Conv2d(NECK_CHANNELS, 10, 1)

    @classmethod
    def of_convention(cls, convention: str) -> CenterFace:
        """The network of a model convention, a key of `VARIANTS`, with random weights."""
        variant = VARIANTS[convention]
        return cls(variant.activation, variant.depthwise_ups)

    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Head maps of a batch.

        Args:
            x: (n, 3, H, W) float, normalised, H and W multiples of `INPUT_MULTIPLE`.

        Returns:
            `hm` (n, 1, H/4, W/4) in 0..1, `wh` (n, 2, ..), `hm_offset` (n, 2, ..) and
            `landmarks` (n, 10, ..).
        """
        features = self.dla_up(self.base(x))
        return (
            self.hm(features),
            self.wh(features),
            self.hm_offset(features),
            self.landmarks(features),
        )


def fold_batch_norms(network: CenterFace) -> CenterFace:
    """A copy of the network for inference: each batch norm folded into its convolution.

    The scaled weights are computed in float64 and rounded once; head maps change by float32
    rounding only.
    """
    folded = copy.deepcopy(network).eval().double()
    for module in folded.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for i in range(len(module) - 1):
            if isinstance(module[i + 1], nn.BatchNorm2d):
                _fold_into(module[i], module[i + 1])
                module[i + 1] = nn.Identity()
    return folded.float()


def _fold_into(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    """Scale a convolution's output channels as the batch norm does, and give it the bias."""
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    if isinstance(conv, nn.ConvTranspose2d):
        # Weights are (inputs, outputs/groups, ..): a group's outputs belong to its own inputs.
        by_group = conv.weight.unflatten(0, (conv.groups, -1))
        scaled = (by_group * factor.view(conv.groups, 1, -1, 1, 1)).flatten(0, 1)
    else:
        scaled = conv.weight * factor.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(scaled.detach())
    conv.bias = nn.Parameter((norm.bias - norm.running_mean * factor).detach())


def _conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    activation: type[nn.Module] = nn.ReLU,
    *,
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
        self,
        inputs: int,
        outputs: int,
        stride: int,
        expansion: int,
        activation: type[nn.Module],
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
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class _Backbone(nn.Module):
    """MobileNetV2 at width 1.0 up to its 320 channels, tapped at strides 4, 8, 16 and 32."""

    CHANNELS = (24, 32, 96, 320)

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()

        def stage(
            inputs: int, outputs: int, blocks: int, stride: int, expansion: int = 6
        ) -> list[nn.Module]:
            """Blocks of which the first changes channels and stride."""
            shapes = [(inputs, outputs, stride)] + [(outputs, outputs, 1)] * (blocks - 1)
            return [_InvertedResidual(*shape, expansion, activation) for shape in shapes]

        self.feature_1 = nn.Sequential(
            _conv_bn(3, 32, 3, activation, stride=2),
            *stage(32, 16, blocks=1, stride=1, expansion=1),
            *stage(16, 24, blocks=2, stride=2),
        )
        self.feature_2 = nn.Sequential(*stage(24, 32, blocks=3, stride=2))
        self.feature_4 = nn.Sequential(
            *stage(32, 64, blocks=4, stride=2), *stage(64, 96, blocks=3, stride=1)
        )
        self.feature_6 = nn.Sequential(
            *stage(96, 160, blocks=3, stride=2), *stage(160, 320, blocks=1, stride=1)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stride_4 = self.feature_1(x)
        stride_8 = self.feature_2(stride_4)
        stride_16 = self.feature_4(stride_8)
        return stride_4, stride_8, stride_16, self.feature_6(stride_16)


class _Up(nn.Module):
    """One step up the neck: the deeper map at twice its size plus the next tap's lateral."""

    def __init__(self, tap_channels: int, depthwise: bool) -> None:
        super().__init__()
        groups = NECK_CHANNELS if depthwise else 1
        self.up = nn.Sequential(
            nn.ConvTranspose2d(NECK_CHANNELS, NECK_CHANNELS, 2, 2, groups=groups, bias=False),
            nn.BatchNorm2d(NECK_CHANNELS, eps=_NECK_EPS),
            nn.ReLU(inplace=True),
        )
        self.conv = _conv_bn(tap_channels, NECK_CHANNELS, 1, eps=_NECK_EPS)

    def forward(self, deeper: torch.Tensor, tap: torch.Tensor) -> torch.Tensor:
        return self.up(deeper) + self.conv(tap)


class _Neck(nn.Module):
    """From the four taps to one 24-channel map at stride 4, deepest first."""

    def __init__(self, depthwise_ups: bool) -> None:
        super().__init__()
        stride_4, stride_8, stride_16, stride_32 = _Backbone.CHANNELS
        self.conv = _conv_bn(stride_32, NECK_CHANNELS, 1, eps=_NECK_EPS)
        self.conv_last = _conv_bn(NECK_CHANNELS, NECK_CHANNELS, 3)
        self.up_0 = _Up(stride_16, depthwise_ups)
        self.up_1 = _Up(stride_8, depthwise_ups)
        self.up_2 = _Up(stride_4, depthwise_ups)

    def forward(self, taps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        stride_4, stride_8, stride_16, stride_32 = taps
        x = self.up_0(self.conv(stride_32), stride_16)
        x = self.up_1(x, stride_8)
        return self.conv_last(self.up_2(x, stride_4))

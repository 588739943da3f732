"""CenterFace in PyTorch: a MobileNetV2 backbone, a neck up to stride 4, four 1x1 heads.

Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019. Module names
are those of the published PyTorch checkpoints, so that their `state_dict` loads as it is.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

INPUT_MULTIPLE = 32  # the deepest tap's stride: input sides are multiples of it

# The normalisation layers' epsilon in the neck's lateral and up convolutions; the backbone and the
# neck's last convolution have PyTorch's 1e-5. No checkpoint holds it.
_NECK_EPS = 1e-3

# The end of a name in a `state_dict`: a batch norm's count of training steps.
BATCH_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Variant:
    """What tells the published networks apart besides their weights' shapes.

    Attributes:
        activation: The backbone's; the neck always has plain ReLU. No `state_dict` states it.
        depthwise_ups: Whether the neck's transposed convolutions have one group a channel.
    """

    activation: type[nn.Module]
    depthwise_ups: bool


# By model convention, the keys of `cfdist.decode.CONVENTIONS`.
VARIANTS = {
    "centerface_pytorch": Variant(nn.ReLU6, depthwise_ups=True),
    "centerface": Variant(nn.ReLU, depthwise_ups=False),
}


class CenterFace(nn.Module):
    """The network, from normalised pictures to the four head maps; its weights are random.

    Args:
        convention: The model convention, a key of `VARIANTS`.
        neck_width: Channels of the neck, which the weights decide: 64 with the default options of
            the training code (`head_conv`), 24 in the original authors' file.
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

    @classmethod
    def without_weights(cls, convention: str, neck_width: int) -> CenterFace:
        """The network with shapes only, on PyTorch's "meta" device; it needs no memory."""
        with torch.device("meta"):
            return cls(convention, neck_width).eval()

    def with_weights(self, state: Mapping[str, torch.Tensor]) -> CenterFace:
        """This network on the CPU with the weights of a `state_dict`; returns itself.

        Args:
            state: Names, shapes and dtypes are this network's. The counters
                `num_batches_tracked`, which inference does not read, may be absent.
        """
        self.to_empty(device="cpu")
        counters = [name for name in self.state_dict() if name.endswith(BATCH_COUNTER)]
        self.load_state_dict({**dict.fromkeys(counters, torch.tensor(0)), **state})
        return self

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
        y = self.dla_up(self.base(x))
        return self.hm(y), self.wh(y), self.hm_offset(y), self.landmarks(y)


def fold_batch_norms(network: CenterFace) -> CenterFace:
    """A copy of the network for inference: each batch norm folded into its convolution.

    The scaled weights are computed in float64 and rounded once; head maps change by float32
    rounding only.
    """
    folded = copy.deepcopy(network).eval().double()
    for module in folded.modules():
        if not isinstance(module, nn.Sequential):
            continue
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
    """MobileNetV2 at width 1.0 up to its 320 channels, tapped at strides 4, 8, 16 and 32."""

    CHANNELS = (24, 32, 96, 320)

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()

        def stage(
            inputs: int, outputs: int, blocks: int, stride: int, expansion: int = 6
        ) -> list[nn.Module]:
            """Blocks; the first one changes channels and stride."""
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
        stride_4, stride_8, stride_16, stride_32 = _Backbone.CHANNELS
        self.conv = _conv_bn(stride_32, width, 1, eps=_NECK_EPS)
        self.conv_last = _conv_bn(width, width, 3)
        self.up_0 = _Up(width, stride_16, depthwise_ups)
        self.up_1 = _Up(width, stride_8, depthwise_ups)
        self.up_2 = _Up(width, stride_4, depthwise_ups)

    def forward(self, taps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        stride_4, stride_8, stride_16, stride_32 = taps
        x = self.up_0(self.conv(stride_32), stride_16)
        x = self.up_1(x, stride_8)
        y: torch.Tensor = self.conv_last(self.up_2(x, stride_4))
        return y

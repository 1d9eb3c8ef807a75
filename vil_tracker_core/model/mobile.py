"""EfficientNet-Lite0 down to stride 16: the trunk of a stem that may begin with ImageNet weights.

Lite0 (of Tan and Le's EfficientNet, arXiv 1905.11946, made for phones) is a row of inverted
residuals (arXiv 1801.04381) with ReLU6 and nothing that a small processor cannot do. Its batch
norms are folded into the convolutions here, for training too: published statistics stay as they
are, and small batches cannot spoil them.

The published net pads images on the right and at the bottom where it halves them, ours on all sides
alike: the same features, seen by cells that lie 15 px further left and up.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5))
"""Expansion, channels, blocks, stride of the first block, kernel: the stages at strides 2 to 16."""

TRUNK_LAYERS = 2 + sum(blocks for _, _, blocks, _, _ in STAGES)
"""The first convolution, its ReLU6, and the blocks."""

FINE_LAYERS = 7
"""Of them, those at strides 2 to 8."""

FIRST = 32
"""Channels of the first convolution."""

# ImageNet's channel statistics, RGB, 0..255
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

PIECE = 8
"""Images at a time in training on a CPU: of more, the wide layers do not stay in its cache."""

EPSILON = 1e-3
"""That of the published batch norms."""


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups)


class InvertedResidual(nn.Module):
    """Widens, filters each channel, narrows; added to its input where both have one shape."""

    def __init__(self, before: int, after: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expand = _conv(before, wide, 1) if expansion > 1 else None
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.project = _conv(wide, after, 1)
        self.residual = stride == 1 and before == after
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else self.act(self.expand(x))
        narrow: Tensor = self.project(self.act(self.depthwise(wide)))
        return x + narrow if self.residual else narrow


class MobileTrunk(nn.Sequential):
    """RGB normalised by ImageNet's statistics (B, 3, H, W) -> (B, 112, H / 16, W / 16).

    In use, the layers that see the image's finest contrasts compute in float32 also under autocast:
    else boxes are off by a pixel of a 720p frame and more.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = [_conv(3, FIRST, 3, 2), nn.ReLU6(inplace=True)]
        width = FIRST
        for expansion, channels, count, first_stride, kernel in STAGES:
            for stride in (first_stride, *[1] * (count - 1)):
                layers.append(InvertedResidual(width, channels, expansion, stride, kernel))
                width = channels
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu":
            return torch.cat([self._of(piece) for piece in x.split(PIECE)])
        return self._of(x)

    def _of(self, x: Tensor) -> Tensor:
        layers = list(self)
        device = x.device.type
        if not self.training and torch.amp.is_autocast_available(device):  # it is not for "meta"
            with torch.autocast(device, enabled=False):
                for layer in layers[:FINE_LAYERS]:
                    x = layer(x)
            layers = layers[FINE_LAYERS:]
        for layer in layers:
            x = layer(x)
        return x


def published_names() -> dict[str, tuple[str, str]]:
    """Our name of a trunk's convolution -> the published names of it and of its batch norm."""
    names = {"0": ("_conv_stem", "_bn0")}
    parts = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    for index in range(TRUNK_LAYERS - 2):
        for part, norm in parts.items():
            if part != "expand" or index:  # the first block does not widen
                published = f"_blocks.{index}."
                names[f"{index + 2}.{part}"] = (f"{published}_{part}_conv", f"{published}{norm}")
    return names


def trunk_from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `MobileTrunk` from a published EfficientNet-Lite0 (PyTorch's names for it).

    A batch norm is an affine map of each channel, so it is one with the convolution before it:
    w' = w g / sqrt(v + eps), b' = b - m g / sqrt(v + eps). The published net takes
    (RGB - 127) / 128; the first convolution takes that in as well, exactly but for the colour
    beyond the border.

    Raises:
        KeyError: naming a tensor that is missing.
        ValueError: naming a batch norm that has not one value for each channel.
    """
    state: dict[str, Tensor] = {}
    for ours, (conv, norm) in published_names().items():
        weight = tensors[f"{conv}.weight"]
        scale, shift, mean, var = (
            tensors[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        if any(each.shape != weight.shape[:1] for each in (scale, shift, mean, var)):
            raise ValueError(f"{norm} has not one value for each of {len(weight)} channels")
        gain = scale * torch.rsqrt(var + EPSILON)
        weight = weight * gain[:, None, None, None]
        bias = shift - mean * gain
        if ours == "0":
            middle, spread = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
            bias = bias + (weight * ((middle - 127) / 128)).sum((1, 2, 3))
            weight = weight * spread / 128
        state[f"{ours}.weight"], state[f"{ours}.bias"] = weight, bias
    return state


class MobileStem(nn.Module):
    """The trunk and a map to a token's width: (B, 3, H, W) -> (B, dim, H / 16, W / 16)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.trunk = MobileTrunk()
        self.project = _conv(STAGES[-1][1], dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.trunk(x))
        return out

"""FBNet down to stride 16: the trunk of a stem that may begin with a trained tracker's weights.

FBNet (arXiv 1812.03443) is a row of inverted residuals (arXiv 1801.04381) whose widths and kernels
were searched for. FEAR-XS (arXiv 2112.07957), which was trained to track on far more videos than we
have, begins with it. Batch norms are folded into the convolutions, for training too: trained
statistics stay as they are, and small batches cannot spoil them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

FIRST = 16
"""Channels of the first convolution."""

STAGES = (
    (16, 1, ((1, 3),)),
    (24, 2, ((6, 3), (1, 3), (1, 3))),
    (32, 2, ((6, 5), (3, 5), (6, 5), (6, 3))),
    (64, 2, ((6, 5), (3, 5), (6, 5), (6, 5))),
    (112, 1, ((6, 5), (6, 5), (6, 5), (3, 5))),
)
"""Channels, stride of the first block, and each block's expansion and kernel."""

TRUNK_LAYERS = 2 + sum(len(blocks) for _, _, blocks in STAGES)
"""The first convolution, its ReLU, and the blocks."""

FINE_LAYERS = 10
"""Of them, those at strides 2 to 8."""

# The channels' statistics that the weights were trained with, RGB, 0..255
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

PIECE = 8
"""Images at a time in training on a CPU: of more, the wide layers do not stay in its cache."""


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
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else self.act(self.expand(x))
        narrow: Tensor = self.project(self.act(self.depthwise(wide)))
        return x + narrow if self.residual else narrow


class MobileTrunk(nn.Sequential):
    """RGB normalised by `MEAN` and `STD` (B, 3, H, W) -> (B, 112, H / 16, W / 16).

    In use, the layers that see the image's finest contrasts compute in float32 also under autocast:
    else boxes are off by a pixel of a 720p frame and more.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = [_conv(3, FIRST, 3, 2), nn.ReLU(inplace=True)]
        width = FIRST
        for channels, stride, blocks in STAGES:
            for index, (expansion, kernel) in enumerate(blocks):
                first = 1 if index else stride
                layers.append(InvertedResidual(width, channels, expansion, first, kernel))
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


def trunk_from_convolutions(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name of each of a trunk's tensors -> its name among a network's convolutions, which are
    called `convolution 1.weight`, `convolution 1.bias`, ... in the network's order.

    Raises:
        ValueError: naming the first tensor that is missing or has another shape than the trunk's.
    """
    with torch.device("meta"):
        expected = MobileTrunk().state_dict()
    layers = [name.removesuffix(".weight") for name in expected if name.endswith(".weight")]
    return in_order(tensors, layers, expected, "the trunk's")


def in_order(
    tensors: Mapping[str, Tensor],
    layers: Sequence[str],
    expected: Mapping[str, Tensor],
    whose: str,
    first: int = 1,
) -> dict[str, str]:
    """Our name of each tensor of some convolutions -> its name in a network that has them in a row.

    Args:
        tensors: the network's, named as `trunk_from_convolutions` says.
        layers: our names of the convolutions, in the network's order.
        expected: our tensors by name; a convolution without a bias has none there.
        whose: they are, for the error's sentence.
        first: number of the first of them in the network.

    Raises:
        ValueError: naming the first tensor that is missing or has another shape than ours.
    """
    names: dict[str, str] = {}
    for number, layer in enumerate(layers, start=first):
        for part in ("weight", "bias"):
            ours, published = f"{layer}.{part}", f"convolution {number}.{part}"
            if ours not in expected:
                continue
            if published not in tensors:
                raise ValueError(f"{published} is missing")
            shape, wanted = tuple(tensors[published].shape), tuple(expected[ours].shape)
            if shape != wanted:
                raise ValueError(f"{published} is {shape}, {whose} is {wanted}")
            names[ours] = published
    return names


class MobileStem(nn.Module):
    """The trunk and a map to a token's width: (B, 3, H, W) -> (B, dim, H / 16, W / 16), and the
    trunk's own features, (B, 112, H / 16, W / 16)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.trunk = MobileTrunk()
        self.project = _conv(STAGES[-1][0], dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.project(features), features

"""How like the template each place of the search region is, said outright.

Every cell of the search region is compared with every cell of the template by a dot product
(pixel-wise correlation, arXiv 2007.02024). FEAR (arXiv 2112.07957) does it twice, once to say where
the target is and once to say how large, and puts its depthwise and pointwise convolutions around
it. So does this, so that it may begin with FEAR-XS's published weights; what it finds is added to
the search region's tokens, and the blocks make of it what they can.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vil_tracker_core.model.mobile import in_order


def _separable(before: int, after: int, bias: bool) -> nn.Sequential:
    """A 3x3 convolution of each channel and a 1x1 one of all, with a ReLU after both."""
    return nn.Sequential(
        nn.Conv2d(before, before, 3, padding=1, groups=before, bias=bias),
        nn.Conv2d(before, after, 1),
        nn.ReLU(),
    )


class Comparison(nn.Module):
    """Search features beside their products with the template's, mixed."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self.search = _separable(width, width, bias=False)
        self.mix = _separable(width + cells, width, bias=True)

    def forward(self, features: Tensor, template: Tensor) -> Tensor:
        """(B, width, G, G) and (B, width, cells) -> (B, width, G, G)."""
        seen = self.search(features)
        products = torch.matmul(template.transpose(1, 2), seen.flatten(2))
        grid = features.shape[-1]
        out: Tensor = self.mix(torch.cat([seen, products.unflatten(-1, (grid, grid))], dim=1))
        return out


class Matcher(nn.Module):
    """What two comparisons with the templates find, as something to add to the search tokens.

    Nothing before it is trained: the last map begins at zero.

    Args:
        before: channels of the stem's features.
        width: channels that are compared.
        cells: of a template.
        dim: of a token.
    """

    def __init__(self, before: int, width: int, cells: int, dim: int) -> None:
        super().__init__()
        self.neck = nn.Conv2d(before, width, 1)
        self.place = Comparison(width, cells)
        self.extent = Comparison(width, cells)
        self.project = nn.Conv2d(2 * width, dim, 1)
        nn.init.zeros_(self.project.weight)
        assert self.project.bias is not None
        nn.init.zeros_(self.project.bias)

    def templates(self, features: Tensor, count: int) -> Tensor:
        """(B * N, before, T, T) features of N templates each -> (B, width, T * T), their mean: a
        product is linear in them, so it is the mean of the products."""
        known: Tensor = self.neck(features).flatten(2).unflatten(0, (-1, count)).mean(1)
        return known

    def forward(self, features: Tensor, templates: Tensor) -> Tensor:
        """(B, before, G, G), and what `templates` gave -> (B, G * G, dim)."""
        seen = self.neck(features)
        found = torch.cat([self.place(seen, templates), self.extent(seen, templates)], dim=1)
        out: Tensor = self.project(found).flatten(2).transpose(1, 2)
        return out


PUBLISHED = (
    "neck",
    *("place.search.0", "place.search.1", "extent.search.0", "extent.search.1"),
    *("place.mix.0", "place.mix.1", "extent.mix.0", "extent.mix.1"),
)
"""Our convolutions in the order in which a FEAR network has them, right after its trunk's."""


def matcher_from_convolutions(
    tensors: Mapping[str, Tensor], first: int, matcher: Matcher
) -> dict[str, str]:
    """Our name of each of a matcher's tensors -> its name among a network's convolutions, see
    `mobile.trunk_from_convolutions`; ``first`` is the number of the neck.

    Raises:
        ValueError: naming the first tensor that is missing or has another shape than the matcher's.
    """
    return in_order(tensors, PUBLISHED, matcher.state_dict(), "the matcher's", first)

"""Tokens and the stack of mLSTM blocks, scanned in alternating directions.

Scan `joint`: one sequence [templates | search]; odd blocks run it backwards.
Scan `regional`: even blocks run the templates, then the search region; odd blocks run each region
backwards on its own. Nothing of the templates then depends on the search region, so their side of
every block is computed once per template and kept: a frame costs its search tokens only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vil_tracker_core.model.block import Block, CellState, Norm
from vil_tracker_core.model.matching import Matcher
from vil_tracker_core.model.mobile import MEAN, STAGES, STD, MobileStem
from vil_tracker_core.model.presets import ModelConfig

States = tuple[CellState | None, ...]
"""Of each even block, None at odd ones."""


class Templates(NamedTuple):
    """What the backbone keeps of a track's templates.

    Attributes:
        tokens: (B, N * T, dim) embedded templates for the joint scan, which runs them anew with
            every frame; None in the regional scan.
        features: (B, N * T, dim) normalised features of the templates (regional scan), or None.
        states: for the regional scan, the even blocks' after the templates; empty in the joint
            scan.
        matched: (B, match_width, T) what the search region is compared with, or None.
    """

    tokens: Tensor | None
    features: Tensor | None
    states: States
    matched: Tensor | None = None

    @property
    def length(self) -> int:
        """How many tokens the templates have."""
        tokens = self.features if self.tokens is None else self.tokens
        assert tokens is not None
        return tokens.shape[1]


class Embedding(nn.Module):
    """Image crops -> tokens: (B, 3, H, W) RGB 0..255 -> (B, H/16 * W/16, dim)."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)
        if config.stem == "patch":
            self.stem: nn.Module = nn.Conv2d(3, dim, config.patch, stride=config.patch)
        elif config.stem == "mobile":
            self.stem = MobileStem(dim)
        else:
            widths = (3, *config.stem_channels, dim)
            layers: list[nn.Module] = []
            for before, after in pairwise(widths):
                layers += [
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.SiLU(),
                ]
            self.stem = nn.Sequential(*layers[:-1])
        self.matcher: Matcher | None = None
        if config.match_width:
            before = STAGES[-1][0] if config.stem == "mobile" else dim
            cells = config.template_grid**2
            self.matcher = Matcher(before, config.match_width, cells, dim)
        self.norm = Norm(dim)
        self.template_position = nn.Parameter(torch.empty(1, config.template_grid**2, dim))
        self.search_position = nn.Parameter(torch.empty(1, config.search_grid**2, dim))
        self.template_type = nn.Parameter(torch.empty(dim))
        self.search_type = nn.Parameter(torch.empty(dim))
        for added in (
            self.template_position,
            self.search_position,
            self.template_type,
            self.search_type,
        ):
            nn.init.normal_(added, std=0.02)

    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised tokens, and the features (B, C, H/16, W/16) that a matcher compares."""
        pixels = (images.permute(0, 2, 3, 1) - self.mean) / self.std
        found = self.stem(pixels.permute(0, 3, 1, 2))
        maps, features = found if isinstance(found, tuple) else (found, found)
        return self.norm(maps.flatten(2).transpose(1, 2)), features

    def templates(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, N, 3, T, T) -> tokens (B, N * T/16 * T/16, dim), and what search regions are compared
        with."""
        batch, count = images.shape[:2]
        tokens, features = self._tokens(images.flatten(0, 1))
        tokens = tokens + self.template_position + self.template_type
        matched = None if self.matcher is None else self.matcher.templates(features, count)
        return tokens.reshape(batch, -1, tokens.shape[-1]), matched

    def search(self, images: Tensor, matched: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> tokens (B, G * G, dim), and the stem's features (B, C, G, G)."""
        tokens, features = self._tokens(images)
        tokens = tokens + self.search_position + self.search_type
        if self.matcher is not None:
            assert matched is not None
            tokens = tokens + self.matcher(features, matched)
        return tokens, features


class Searched(NamedTuple):
    """What the backbone makes of a search crop.

    Attributes:
        features: (B, G * G, dim) normalised.
        states: the even blocks' after the crop, in the regional scan.
        tapped: (B, G * G, dim) tokens after the block that was asked for, or None.
        seen: (B, C, G, G) the stem's features, which know nothing of the templates.
    """

    features: Tensor
    states: States
    tapped: Tensor | None
    seen: Tensor


Modulation = list[tuple[Tensor, Tensor]]
"""(gamma, beta) of the entrance and of each modulated layer, for one region's tokens."""


class Backbone(nn.Module):
    """The stem and the blocks. Stateless: what is remembered comes in and goes out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = Norm(config.dim)

    def encode_templates(self, templates: Tensor) -> Templates:
        """(B, N, 3, T, T) crops, oldest first -> what later frames need of them."""
        batch, count = templates.shape[:2]
        x, matched = self.embedding.templates(templates)
        if self.config.scan == "joint":
            return Templates(x, None, (), matched)
        states: list[CellState | None] = []
        for index, block in enumerate(self.blocks):
            if index % 2 == 0:
                x, state = block(x)
                states.append(state)
            else:
                alone = x.reshape(batch * count, -1, x.shape[-1])
                alone = block(alone.flip(1))[0].flip(1)
                x = alone.reshape(x.shape)
                states.append(None)
        return Templates(None, self.norm(x), tuple(states), matched)

    def _modulate(self, x: Tensor, index: int, modulation: Modulation) -> Tensor:
        """Applies the pair that follows block ``index``, if one does; -1 is the entrance."""
        layer, rest = divmod(index + 1, self.config.film_every)
        if rest or layer >= len(modulation):
            return x
        gamma, beta = modulation[layer]
        return x * gamma + beta

    def forward(
        self,
        search: Tensor,
        templates: Templates,
        modulation: Modulation,
        tap: int | None = None,
        states: States = (),
    ) -> Searched:
        """One search crop (B, 3, S, S) after its templates.

        Args:
            search: RGB 0..255.
            templates: of `encode_templates`.
            modulation: of the search tokens; empty for none. (The templates are of the first
                frame, which has no context, so they are never modulated.)
            tap: index of a block whose search tokens are returned as well.
            states: the even blocks' before the crop in the regional scan, if not the templates'.
        """
        x, seen = self.embedding.search(search, templates.matched)
        x = self._modulate(x, -1, modulation)
        tapped: Tensor | None = None
        states = states or templates.states
        ends = list(states)
        before = 0 if templates.tokens is None else templates.tokens.shape[1]
        if templates.tokens is not None:
            x = torch.cat([templates.tokens, x], dim=1)
        for index, block in enumerate(self.blocks):
            if index % 2 == 1:
                x = block(x.flip(1))[0].flip(1)
            elif before:
                x, _ = block(x)
            else:
                x, ends[index] = block(x, states[index])
            if modulation and before:
                x = torch.cat(
                    [x[:, :before], self._modulate(x[:, before:], index, modulation)], dim=1
                )
            elif modulation:
                x = self._modulate(x, index, modulation)
            if index == tap:
                tapped = x[:, before:]
        features: Tensor = self.norm(x)[:, before:]
        return Searched(features, tuple(ends), tapped, seen)

"""The whole net: backbone, temporal modulation and heads, as pure functions of explicit state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vil_tracker_core.model.backbone import Backbone, States, Templates
from vil_tracker_core.model.film import Context, Film, moved, resample
from vil_tracker_core.model.heads import (
    CentreHead,
    Detection,
    Prediction,
    UncertaintyHead,
    at_cells,
    centre,
    peak,
)
from vil_tracker_core.model.mlstm import merged
from vil_tracker_core.model.presets import ModelConfig


class Memory(NamedTuple):
    """All that the net remembers of one track (or a batch of them, along axis 0).

    Attributes:
        templates: the templates' side of the backbone.
        deltas: (B, 4) of the first frame, see `film.box_deltas`; 0 until they are known, None with
            FiLM off.
        box: (B, 4) where the target is believed to have been in the last frame, (cx, cy, w, h) in
            units of its search crop's side; of no size where that is not known. The net does not
            decide that: whoever runs it puts it there.
        context: FiLM's context on the search grid.
        states: with `memory: carry`, what the even blocks begin the next frame with; else empty.
    """

    templates: Templates
    deltas: Tensor | None
    box: Tensor
    context: Context
    states: States


class Step(NamedTuple):
    """One frame's result. ``features`` (B, G * G, dim) and ``tapped`` serve the losses; ``seen``
    (B, C, G, G), the stem's features, whoever wants to recognise the target by them."""

    prediction: Prediction
    memory: Memory
    features: Tensor
    tapped: Tensor | None
    seen: Tensor


def identity_motion(batch: int, like: Tensor) -> Tensor:
    """(B, 3) motion of a crop that has not moved, see `film.resample`."""
    return like.new_tensor([0.0, 0.0, 1.0]).expand(batch, 3)


class ViLTracker(nn.Module):
    """Vision-LSTM tracker: templates and a search crop -> score map, box and its variance."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.film = Film(config) if config.film_layers else None
        self.centre_head = CentreHead(config)
        self.uncertainty_head = UncertaintyHead(config)

    def start(self, templates: Tensor) -> Memory:
        """The memory of a track that begins with these crops (B, N, 3, T, T), RGB 0..255."""
        length, dim = self.config.search_grid**2, self.config.dim
        batch = templates.shape[0]
        context = Context.empty(batch, length, dim, like=templates)
        encoded = self.backbone.encode_templates(templates)
        states = encoded.states if self.config.memory == "carry" else ()
        deltas = None if self.film is None else templates.new_zeros(batch, 4)
        return Memory(encoded, deltas, templates.new_zeros(batch, 4), context, states)

    def step(
        self,
        search: Tensor,
        memory: Memory,
        motion: Tensor,
        trust: Tensor,
        tap: int | None = None,
    ) -> Step:
        """One frame.

        Args:
            search: (B, 3, S, S) RGB 0..255.
            memory: of `start` or of the frame before.
            motion: (B, 3) how the search crop moved since the frame before, see `film.resample`.
            trust: (B,) in 0..1, 0 while the track is lost: how far this frame may renew the
                context, and what it leaves in a carried memory. The score's peak weighs it further.
            tap: index of a block whose search tokens are wanted.
        """
        box, context = moved(memory.box, motion), memory.context
        modulation = []
        if self.film is not None:
            assert memory.deltas is not None
            context = resample(context, motion)
            modulation = self.film.pairs(context, memory.deltas, box)
        templates = memory.templates
        found = self.backbone(search, templates, modulation, tap, memory.states)
        maps = self._maps(found.features)
        score, offset, size = self.centre_head(maps)
        prediction = Prediction(score, offset, size, self.uncertainty_head(maps))
        confidence = trust * score.flatten(1).amax(1).detach()
        if self.film is not None:
            context = self.film.renew(context, found.features, confidence)
        states = self._carried(templates.states, found.states, confidence)
        after = Memory(templates, memory.deltas, box, context, states)
        return Step(prediction, after, found.features, found.tapped, found.seen)

    def _carried(self, own: States, after: States, confidence: Tensor) -> States:
        """What the next frame begins with: the templates' states and, by the frame's confidence,
        those after it.

        The templates' are added anew with each frame. Where the states were only handed on, every
        frame wrote four times as many tokens as the template into heads that forget next to
        nothing, and the target's share of the memory shrank with each.
        """
        if self.config.memory == "reset":
            return ()
        weight = self.config.memory_keep * confidence
        return tuple(
            None
            if one is None or other is None
            else one._replace(memory=merged(one.memory, other.memory, weight))
            for one, other in zip(own, after, strict=True)
        )

    def _maps(self, features: Tensor) -> Tensor:
        """(B, G * G, dim) as (B, dim, G, G)."""
        grid = self.config.search_grid
        maps: Tensor = features.transpose(1, 2).unflatten(-1, (grid, grid))
        return maps

    def detect(self, step: Step, window: Tensor | None = None) -> Detection:
        """What `decode` reads off all cells' predictions, with all but the score computed at the
        best cell only: less work where a graph leaves out what is not asked for."""
        maps = self._maps(step.features)
        cells = peak(step.prediction.score, window)
        offset, size = self.centre_head.at(maps, cells)
        unit = torch.cat([centre(cells, offset, maps.shape[-1]), size], dim=1)
        score = at_cells(step.prediction.score[:, None], cells)[:, 0]
        return Detection(unit, self.uncertainty_head.at(maps, cells), score)

    def forward_clip(
        self, templates: Tensor, searches: Tensor, motions: Tensor, tap: int | None = None
    ) -> list[Step]:
        """K frames that follow their templates: what K calls of `step` give.

        Args:
            templates: (B, N, 3, T, T).
            searches: (B, K, 3, S, S).
            motions: (B, K, 3); the first frame's is ignored, as there is no context yet.
        """
        memory = self.start(templates)
        trust = searches.new_ones(searches.shape[0])
        steps = []
        for frame in range(searches.shape[1]):
            step = self.step(searches[:, frame], memory, motions[:, frame], trust, tap)
            memory = step.memory
            steps.append(step)
        return steps


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

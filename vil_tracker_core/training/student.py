"""The tracker and what only training needs, as one module whose forward pass gives the losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vil_tracker_core.model.film import box_deltas
from vil_tracker_core.model.heads import Prediction, decode
from vil_tracker_core.model.tracker import Memory, Step, ViLTracker, identity_motion
from vil_tracker_core.training.batches import Batch
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.curriculum import loss_weights
from vil_tracker_core.training.distill import (
    FeatureDistillation,
    Taught,
    box_distillation,
    reliability,
    score_distillation,
)
from vil_tracker_core.training.follow import Follower, as_cut
from vil_tracker_core.training.losses import (
    AdaptiveWeights,
    iou,
    memory_contrastive,
    target_map,
    target_memory,
    tracking_losses,
    weighted_mean,
)
from vil_tracker_core.training.phases import Stage, freeze_shared_experts, freeze_trunk
from vil_tracker_core.training.teachers import KINDS

Losses = dict[str, Tensor]
SEEN = 0.2
"""Score from which an answer of the net is taken for the target's box."""


class Seen(NamedTuple):
    """What the tracker makes of a frame, and the truth: the target's box (B, 4) in units of the
    search crop's side, NaN where absent, and (B,) whether its middle lies in the crop."""

    step: Step
    unit: Tensor
    visible: Tensor


class Student(nn.Module):
    """Clips -> losses.

    Attributes:
        tracker: what is trained for.
        distillation: maps its features to the teacher's, where there is one.
        balance: learned weights of the losses, where they are learned. The nll is not among them:
            it can be negative, and is a likelihood with variances of its own already.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        # channels last: the layout of tokens; halves the time of the convolutions' backward pass
        self.tracker = ViLTracker(config.model_config_of())
        self.tracker.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.freeze_shared_experts:
            freeze_shared_experts(self.tracker)
        freeze_trunk(self.tracker, config.freeze_trunk)

        self.distillation: FeatureDistillation | None = None
        if config.teacher and config.teacher.feature_weight:
            channels = KINDS[config.teacher.kind].channels
            self.distillation = FeatureDistillation(self.tracker.config.dim, channels)
        self.balance: AdaptiveWeights | None = None
        if config.adaptive_losses:
            names = [name for name, weight in self._weights(Stage()).items() if weight]
            self.balance = AdaptiveWeights([name for name in names if name != "nll"])

        self._normalised: Tensor | None = None
        if config.losses.contrastive and self.tracker.config.scan == "joint":
            # there the templates' features are known to the final norm alone
            self.tracker.backbone.norm.register_forward_hook(self._keep_normalised)

    def _keep_normalised(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._normalised = output

    def _weights(self, stage: Stage) -> dict[str, float]:
        """Every loss's fixed weight, 0 where it is left out."""
        weights = loss_weights(self.config, stage.level)
        if self.config.teacher:
            teacher = self.config.teacher
            weights["distill_features"] = teacher.feature_weight
            weights["distill_score"] = teacher.score_weight
            weights["distill_boxes"] = teacher.box_weight
        return weights

    def forward(self, batch: Batch, stage: Stage = Stage()) -> Losses:  # noqa: B008 - immutable
        """Each loss, unweighted, as a mean over the clip's frames; their sum `total`; and, not
        among them, the `overlap` of the best cells' boxes with the truth."""
        frames = [
            self._frame_losses(seen, batch, k) for k, seen in enumerate(self._steps(batch, stage))
        ]
        losses = {name: torch.stack([f[name] for f in frames]).mean() for name in frames[0]}
        overlap = losses.pop("overlap")
        weights = self._weights(stage)
        terms = {name: weights[name] * value for name, value in losses.items()}
        if self.balance is None:
            total = torch.stack(list(terms.values())).sum()
        else:
            total = self.balance(terms) + terms["nll"]
        return {**losses, "total": total, "overlap": overlap}

    def overlaps(self, batch: Batch) -> Tensor:
        """(N,) IoU of the answers with the truth in all frames that show the target, FiLM on. It
        asks nothing of other processes, which need not take part."""
        return torch.cat(
            [
                iou(decode(seen.step.prediction).unit, seen.unit)[seen.visible]
                for seen in self._steps(batch, Stage())
            ]
        )

    def _steps(self, batch: Batch, stage: Stage) -> list[Seen]:
        """What the tracker makes of the clip's frames, one by one as online: of the first with one
        template, of the others with all there are. While FiLM is off no frame is trusted, nor is
        any in a clip of which nothing is kept: the context stays empty, which modulates nothing,
        and nothing is carried. While FiLM is off the net is not told of anything either."""
        config, teacher = self.config, self.config.teacher
        tap = teacher.block if teacher and teacher.feature_weight else None
        templates = batch["template"].float()
        memory = self._after_first(self.tracker.start(templates[:, :1]), batch, stage)
        tells, trust = (batch["tells"][:, 1:].float() * stage.film).split(1, dim=1)
        memory = memory._replace(box=batch["last"] * tells)
        follower: Follower | None = None
        if config.follow:
            follower = Follower(batch, self.tracker.config)
        seen = []
        for k in range(batch["search"].shape[1]):
            if k == 1 and templates.shape[1] > 1:
                fresh = self.tracker.start(templates)
                memory = memory._replace(templates=fresh.templates, states=fresh.states)
            shown = follower.show(k) if follower else as_cut(batch, k)
            step = self.tracker.step(shown.search, memory, shown.motion, trust[:, 0], tap)
            memory = step.memory._replace(box=believed(step) * tells)
            if follower:
                follower.learn(step.prediction)
            if self._normalised is not None:  # the features are of this frame's pass
                tokens = self._normalised[:, : -step.features.shape[1]]
                known = step.memory.templates._replace(features=tokens)
                step = step._replace(memory=step.memory._replace(templates=known))
            seen.append(Seen(step, shown.unit, shown.visible))
        return seen

    def _after_first(self, memory: Memory, batch: Batch, stage: Stage) -> Memory:
        """The memory after the first frame, on which the box was drawn; of which nothing is kept
        while FiLM is off."""
        if not stage.film or memory.deltas is None:
            return memory
        first, drawn = batch["first"].float(), batch["drawn"].float()
        still = identity_motion(len(first), first)
        step = self.tracker.step(first, memory, still, torch.zeros_like(first[:, 0, 0, 0]))
        deltas = box_deltas(decode(step.prediction).unit, drawn).detach()
        return memory._replace(deltas=deltas * batch["tells"][:, :1])

    def _frame_losses(self, seen: Seen, batch: Batch, k: int) -> Losses:
        """The losses of frame k, and its `overlap`."""
        step, unit, visible = seen
        losses = tracking_losses(step.prediction, unit, visible)
        if self.config.losses.contrastive:
            losses["contrastive"] = self._contrastive(step, unit, visible)
        if self.distillation is not None and step.tapped is not None:
            losses["distill_features"] = self.distillation(
                step.tapped, batch["taught_features"][:, k]
            )
        if self.config.teacher and self.config.teacher.responds:
            taught = Taught(batch["taught_score"][:, k], batch["taught_boxes"][:, k])
            trust = reliability(taught, unit, visible)
            losses["distill_score"] = score_distillation(step.prediction.score, taught.score, trust)
            losses["distill_boxes"] = box_distillation(step.prediction, taught, trust)
        losses["overlap"] = mean_overlap(step.prediction, unit, visible)
        return losses

    def _contrastive(self, step: Step, unit: Tensor, visible: Tensor) -> Tensor:
        model, features = self.tracker.config, step.memory.templates.features
        assert features is not None
        memory = target_memory(features, model.template_grid, model.template_factor)
        return memory_contrastive(
            memory, step.features, target_map(unit, visible, model.search_grid)
        )


@torch.no_grad()
def believed(step: Step) -> Tensor:
    """(B, 4) the box of the best cell; the last one where the net sees no target, as a tracker
    keeps it until the target is lost."""
    best = decode(step.prediction)
    return torch.where((best.score > SEEN)[:, None], best.unit, step.memory.box)


@torch.no_grad()
def mean_overlap(prediction: Prediction, unit: Tensor, visible: Tensor) -> Tensor:
    """IoU of the best cell's box with the truth (B, 4), a mean over visible samples."""
    unit = torch.where(visible[:, None], unit, torch.full_like(unit, 0.5))
    return weighted_mean(iou(decode(prediction).unit, unit), visible.to(unit.dtype))

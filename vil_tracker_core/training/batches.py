"""Clips as tensors, with what a teacher says of them, dealt to processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from vil_tracker_core.data.clips import Clip
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.sources import clip_dataset
from vil_tracker_core.training.teachers import Response, Teacher, open_teacher

Batch = dict[str, Tensor]


def tensors(clip: Clip) -> Batch:
    """A clip's arrays as tensors."""
    return {name: torch.from_numpy(np.asarray(v, order="C")) for name, v in clip.items()}


def batch_of(clips: list[Clip]) -> Batch:
    """Clips as one batch."""
    batch: Batch = default_collate([tensors(clip) for clip in clips])
    return batch


class TaughtClips(Dataset[Batch]):
    """Clips, see `data.clips.Clip`, as tensors.

    With a teacher also ``taught_features`` (K, channels, g, g), and, where it has to respond,
    ``taught_score`` (K, G, G) and ``taught_boxes`` (K, 4, G, G).

    Args:
        config: the run.
        skipped: a text file for the names of broken images, see `sources.clip_dataset`.
    """

    def __init__(self, config: TrainConfig, skipped: Path | None = None) -> None:
        self.clips = clip_dataset(config, skipped)
        self.config = config
        self._teacher: Teacher | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Batch:
        cv2.setNumThreads(1)
        clip = self.clips[index]
        return tensors(clip) | self._taught(clip, index)

    def _taught(self, clip: Clip, index: int) -> Batch:
        config = self.config.teacher
        if config is None:
            return {}
        if self._teacher is None:  # one a worker: its sessions do not survive a fork
            self._teacher = open_teacher(config, self.config.model_config_of())
        taught = {}
        if config.feature_weight:
            features = [self._teacher.features(search) for search in clip["search"]]
            taught["taught_features"] = torch.from_numpy(np.stack(features))
        if config.responds:
            asked = self._asked(index)
            responses = [
                self._response(self._teacher, clip, k, asked) for k in range(len(clip["search"]))
            ]
            taught["taught_score"] = torch.from_numpy(np.stack([r.score for r in responses]))
            taught["taught_boxes"] = torch.from_numpy(np.stack([r.boxes for r in responses]))
        return taught

    def _asked(self, index: int) -> bool:
        """Whether the teacher answers for the clip of this number: evenly `share` of them."""
        assert self.config.teacher is not None
        share = self.config.teacher.share
        return math.floor((index + 1) * share) > math.floor(index * share)

    def _response(self, teacher: Teacher, clip: Clip, k: int, asked: bool) -> Response:
        """The teacher's answer for frame k; 0, which nobody learns, where the target is absent or
        the clip is not among those for which the teacher is asked."""
        grid = self.config.model_config_of().search_grid
        if not (asked and clip["visible"][k]):
            nothing = np.zeros((4, grid, grid), np.float32)
            return Response(nothing[0], nothing)
        _, _, w, h = clip["box"][k].tolist()
        aspect = min(max(w / max(h, 1e-6), 1 / 16), 16)
        return teacher.respond(clip["template"][0], clip["search"][k], aspect, grid)


class ShareOfProcess(Sampler[int]):
    """The clips of one process, in order, from a step on: every process knows all the others'."""

    def __init__(self, config: TrainConfig, rank: int, world: int, first_micro: int) -> None:
        self.batch, self.rank, self.world = config.batch, rank, world
        self.first = first_micro
        self.count = config.steps * config.accumulate
        if config.batch % world:
            raise DataError(f"batch {config.batch} is not a multiple of the {world} processes")

    def __iter__(self) -> Iterator[int]:
        share = self.batch // self.world
        for micro in range(self.first, self.count):
            start = micro * self.batch + self.rank * share
            yield from range(start, start + share)

    def __len__(self) -> int:
        return (self.count - self.first) * self.batch // self.world

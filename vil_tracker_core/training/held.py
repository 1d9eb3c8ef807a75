"""What a run's weights are worth on the sequences that it holds out, checkpoint by checkpoint."""

from __future__ import annotations

import cv2
import torch

from vil_tracker_core.training.batches import Batch, batch_of
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.optimizer import Ema
from vil_tracker_core.training.sources import held_dataset
from vil_tracker_core.training.student import Student

CLIPS, BATCH = 96, 16
"""Clips, of all held sequences together and the same at every checkpoint; and so many at a time."""


class HeldOut:
    """Clips of the sequences in `data.hold_out`, read once; of none where that is empty."""

    def __init__(self, config: TrainConfig) -> None:
        cv2.setNumThreads(1)  # the loader's workers are forks, which threads do not survive
        self._batches: list[Batch] = []
        if clips := held_dataset(config, CLIPS):
            for start in range(0, CLIPS, BATCH):
                self._batches.append(batch_of([clips[start + k] for k in range(BATCH)]))

    @torch.no_grad()
    def overlap(self, student: Student, ema: Ema) -> float | None:
        """Mean IoU of the answers of the average's net with the truth, FiLM on; None where no
        sequence is held out. The student is left as it was."""
        if not self._batches:
            return None
        own = {name: value.clone() for name, value in student.tracker.state_dict().items()}
        training, device = student.training, next(iter(own.values())).device
        student.tracker.load_state_dict(ema.state)
        student.eval()
        with torch.compiler.set_stance("force_eager"):
            overlaps = [
                student.overlaps({name: value.to(device) for name, value in batch.items()})
                for batch in self._batches
            ]
        student.tracker.load_state_dict(own)
        student.train(training)
        return torch.cat(overlaps).mean().item()

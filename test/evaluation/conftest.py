"""Small made sequences, on disk and in memory, and a net of random weights in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.geometry import Image
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker

COUNT = 12
MakeSequence = Callable[..., Sequence]


@pytest.fixture(scope="session")
def make_sequence() -> MakeSequence:
    """make_sequence(name, count, absent): a patch that moves 2 px a frame over a smooth picture.

    In the frames ``absent`` the truth is NaN and the patch is not drawn.
    """

    def make(name: str = "car", count: int = COUNT, absent: tuple[int, ...] = ()) -> Sequence:
        rng = np.random.default_rng(len(name))
        coarse = rng.integers(40, 200, (8, 12, 3), dtype=np.uint8)
        ground = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)
        patch = cv2.resize(
            rng.integers(0, 255, (4, 5, 3), dtype=np.uint8), (26, 20), interpolation=cv2.INTER_CUBIC
        )
        steps = np.arange(count) % 40
        boxes = np.stack(
            [10.0 + 2 * steps, 30.0 + steps % 5, np.full(count, 26.0), np.full(count, 20.0)], axis=1
        )
        places = boxes.copy()
        boxes[list(absent)] = np.nan

        def load(index: int) -> Image:
            frame = ground.copy()
            if index not in absent:
                x, y, w, h = places[index].astype(int)
                frame[y : y + h, x : x + w] = patch
            return np.asarray(frame, dtype=np.uint8)

        return Sequence(name, boxes, np.arange(count) / 30, load, "made")

    return make


@pytest.fixture(scope="session")
def write_sequence() -> Callable[[Sequence, Path], Path]:
    """Writes a sequence as a folder of PNGs with truth."""

    def write(sequence: Sequence, root: Path) -> Path:
        folder = root / sequence.name
        (folder / "img").mkdir(parents=True)
        for index in range(len(sequence)):
            cv2.imwrite(str(folder / "img" / f"{index + 1:04d}.png"), sequence.load(index))
        np.savetxt(folder / "groundtruth_rect.txt", sequence.boxes, fmt="%.3f", delimiter=",")
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of the smallest preset."""
    torch.manual_seed(0)
    config = preset("vil_tiny")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(path, weights.Weights(config, ViLTracker(config).state_dict()))
    return path

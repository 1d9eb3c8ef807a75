"""Small videos on disk, written by the tests themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.geometry import Image

WriteVideo = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    """A function (name, truth lines, frames) -> folder with img/ and groundtruth_rect.txt.

    Frame i is a plain 48x32 PNG of the grey level i.
    """

    def write(name: str, lines: list[str], frames: int) -> Path:
        folder = tmp_path / name
        (folder / "img").mkdir(parents=True)
        for index in range(frames):
            image: Image = np.full((32, 48, 3), index, dtype=np.uint8)
            cv2.imwrite(str(folder / "img" / f"{index + 1:08d}.png"), image)
        (folder / "groundtruth_rect.txt").write_text("".join(f"{line}\n" for line in lines))
        return folder

    return write

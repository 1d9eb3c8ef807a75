"""Data sets as small as they go, in the layout in which they are published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.data.sequence import DataError

WriteFrames = Callable[..., None]
Refused = Callable[..., None]


@pytest.fixture
def write_frames() -> WriteFrames:
    """A function (folder, pattern, numbers): writes 6x4 images of the grey level of their number,
    as PNGs whatever their name says, which keeps the level exact."""

    def write(folder: Path, pattern: str, numbers: range) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            level = np.full((4, 6, 3), number % 256, np.uint8)
            (folder / pattern.format(number)).write_bytes(cv2.imencode(".png", level)[1].tobytes())

    return write


@pytest.fixture
def refused() -> Refused:
    """A function (read, *parts): ``read()`` raises a DataError of one line that has all parts."""

    def check(read: Callable[[], object], *parts: object) -> None:
        with pytest.raises(DataError) as error:
            read()
        text = str(error.value)
        assert "\n" not in text
        for part in parts:
            assert str(part) in text, f"{part!r} is not named in {text!r}"

    return check

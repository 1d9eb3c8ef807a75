"""Crops of the tests' frames, and one step of a network on them."""

from __future__ import annotations

from vil_tracker_core.geometry import Box, Crop, Image
from vil_tracker_core.model.tracker import Memory
from vil_tracker_core.tracking.network import Network


def crops_of(frames: list[Image], size: int) -> list[Image]:
    """Three different crops of the first three frames."""
    boxes = [Box(20, 20, 24, 20), Box(70, 50, 30, 30), Box(100, 10, 20, 26)]
    return [
        Crop.around(box, 3.0, size).cut(frame) for box, frame in zip(boxes, frames, strict=False)
    ]


def run(network: Network, crops: list[Image], memories: list[Memory]) -> tuple[list, list]:
    count = len(crops)
    return network.step(crops, memories, [(0.05, -0.1, 1.1)] * count, [1.0] * count)

"""How far two runs of one net are apart: backends, precisions, exported files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vil_tracker_core import weights
from vil_tracker_core.geometry import Box, Crop, Image, crop_motion
from vil_tracker_core.model.export import export
from vil_tracker_core.tracking.graphs import OnnxNetwork
from vil_tracker_core.tracking.network import Network, TorchNetwork


class Agreement(NamedTuple):
    """Greatest differences over some frames.

    Attributes:
        box: of any of a box's four edges, px of the frame.
        score: of the score.
        sigma: of the standard deviations, as a ratio minus 1.
    """

    box: float
    score: float
    sigma: float


def agreement(reference: Network, other: Network, frames: Iterable[Image], box: Box) -> Agreement:
    """Runs two networks on the same crops, each with its own memory, and compares their answers.

    Args:
        reference: its boxes place the next frame's crop.
        other: to be compared.
        frames: (H, W, 3) BGR; the first is where the track begins.
        box: the target in the first frame.
    """
    config = reference.config
    pair = (reference, other)
    each = iter(frames)
    template = Crop.around(box, config.template_factor, config.template_size).cut(next(each))
    memories = [network.start([template]) for network in pair]
    before: Crop | None = None
    worst = np.zeros(3)
    for frame in each:
        crop = Crop.around(box, config.search_factor, config.search_size)
        image, motion = crop.cut(frame), crop_motion(before or crop, crop)
        found = []
        for index, network in enumerate(pair):
            (one,), (memories[index],) = network.step([image], [memories[index]], [motion], [1.0])
            found.append(one)
        boxes = [crop.to_frame(one.unit) for one in found]
        edges = [np.array([b.x, b.y, b.x + b.w, b.y + b.h]) for b in boxes]
        sigmas = [np.sqrt(one.variance) for one in found]
        differences = (
            np.abs(edges[0] - edges[1]).max(),
            abs(found[0].score - found[1].score),
            np.abs(sigmas[1] / sigmas[0] - 1).max(),
        )
        worst = np.maximum(worst, differences)
        box, before = boxes[0], crop
    return Agreement(*worst.tolist())


def export_checked(
    loaded: weights.Weights, folder: Path, frames: Iterable[Image], box: Box
) -> Agreement:
    """Writes the graphs and says how far onnxruntime's answers from them are from PyTorch's.

    Args:
        loaded: the net.
        folder: made where it does not exist.
        frames: as for `agreement`.
        box: the target in the first frame.
    """
    reference = TorchNetwork(loaded)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, graph in export(loaded.build(), reference.window).items():
        file = folder / f"{name}.onnx"
        file.write_bytes(graph)
        written[name] = file.read_bytes()
    return agreement(reference, OnnxNetwork(loaded, exported=written), frames, box)

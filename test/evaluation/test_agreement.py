"""What this module calls a difference; and the shipped net's, on the bundled real clip."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from vil_tracker_core import evaluation, weights
from vil_tracker_core.evaluation.agreement import agreement, export_checked
from vil_tracker_core.evaluation.bags import open_bag
from vil_tracker_core.geometry import Box, Image
from vil_tracker_core.model.export import export
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.tracking.graphs import OnnxNetwork, OpenvinoNetwork
from vil_tracker_core.tracking.network import Network, TorchNetwork

CLIP = Path(__file__).parents[2] / "clips" / "real"
BFLOAT16 = 0.5  # px of a 720p frame


@pytest.fixture(scope="module")
def clip() -> tuple[list[Image], Box]:
    """Some frames of the bundled real clip at 720p, and the target in the first."""
    with open_bag(CLIP) as bag:
        truth = bag.truth()
        images = list(islice(bag.images(), 12))
    box = np.array(truth[images[0].stamp])
    height, width = images[0].frame.shape[:2]
    frames = [np.asarray(cv2.resize(image.frame, (1280, 720)), dtype=np.uint8) for image in images]
    return frames, Box(*(box * np.array([1280 / width, 720 / height] * 2)).tolist())


@pytest.fixture
def tiny() -> weights.Weights:
    config = preset("vil_tiny")
    return weights.Weights(config, ViLTracker(config).state_dict())


def test_a_net_agrees_with_itself(tiny: weights.Weights, clip: tuple[list[Image], Box]) -> None:
    frames, box = clip
    assert agreement(TorchNetwork(tiny), TorchNetwork(tiny), frames[:4], box) == (0, 0, 0)


def test_differences_are_in_pixels_of_the_frame(
    tiny: weights.Weights, clip: tuple[list[Image], Box]
) -> None:
    """A net whose every width is larger by a 64th of the crop: each edge moves by half of that."""
    frames, box = clip

    class Wider(TorchNetwork):
        def step(self, *inputs: object) -> tuple[list, list]:
            found, memories = super().step(*inputs)  # type: ignore[arg-type]
            wider = [
                f._replace(unit=f.unit + np.array([0, 0, 1 / 64, 0]), score=f.score - 0.25)
                for f in found
            ]
            return [f._replace(variance=4 * f.variance) for f in wider], memories

    apart = agreement(TorchNetwork(tiny), Wider(tiny), frames[:2], box)
    side = round(tiny.config.search_factor * (box.w * box.h) ** 0.5)
    assert apart.box == pytest.approx(side / 128, rel=0.03)
    assert apart.score == pytest.approx(0.25)
    assert apart.sigma == pytest.approx(1.0)


def test_an_exported_net_answers_as_pytorch(
    tiny: weights.Weights, clip: tuple[list[Image], Box], tmp_path: Path
) -> None:
    frames, box = clip
    apart = export_checked(tiny, tmp_path / "graphs", frames[:4], box)
    assert 0 < apart.box < 0.01
    files = sorted((tmp_path / "graphs").iterdir())
    assert [file.name for file in files] == ["start.onnx", "start_2.onnx", "step.onnx"]
    inputs = [onnxruntime.InferenceSession(file).get_inputs()[0].name for file in files]
    assert inputs == ["templates", "templates", "search"]


def test_the_exported_files_themselves_are_checked(
    tiny: weights.Weights,
    clip: tuple[list[Image], Box],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, box = clip
    other = replace(tiny, tensors={name: 1.1 * value for name, value in tiny.tensors.items()})
    monkeypatch.setattr(
        evaluation.agreement, "export", lambda _, window: export(other.build(), window)
    )
    assert export_checked(tiny, tmp_path / "graphs", frames[:4], box).box > 1


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "openvino bf16", "torch bf16"])
def test_the_shipped_net_agrees_with_pytorch_at_720p(
    clip: tuple[list[Image], Box],
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """On real frames, in pixels, whatever runs it, against PyTorch in float32."""
    if "bf16" in kind:
        request.getfixturevalue("bfloat16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "graphs"))
    loaded = weights.load(weights.shipped("vil_nano"))

    def opened() -> Network:
        if kind == "onnxruntime":
            return OnnxNetwork(loaded)
        if kind == "torch bf16":
            return TorchNetwork(loaded, precision="bfloat16")
        return OpenvinoNetwork(loaded, precision="bfloat16" if "bf16" in kind else "float32")

    frames, box = clip
    apart = agreement(TorchNetwork(loaded), opened(), frames, box)
    assert apart.box < (BFLOAT16 if "bf16" in kind else 0.01)
    assert apart.score < (0.01 if "bf16" in kind else 1e-3)
    assert apart.sigma < (0.05 if "bf16" in kind else 1e-3)
